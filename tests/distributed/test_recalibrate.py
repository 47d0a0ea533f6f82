"""Recalibration over ranks: each reads its shard, and all get what one process gets on everything."""

import time

import pytest
import torch
from torch import nn

import batchnorm
from tests.distributed import world

DATA = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 + 1
SPLITS = ((slice(0, 40), slice(40, 60)), (slice(0, 5), slice(5, 60)))


def model(method="batchnorm"):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    return batchnorm.convert(net.double(), method)


def shards(rank, ranks):
    states = []
    for split in SPLITS:
        for method in ("batchnorm", "sync"):
            net = model(method)
            batchnorm.recalibrate(net, DATA[split[rank]].split(20), process_group=torch.distributed.group.WORLD)
            states.append({name: value.clone() for name, value in net.named_buffers()})
    return states


def test_shards_of_any_size_give_the_statistics_of_one_process():
    alone = model()
    batchnorm.recalibrate(alone, list(DATA.split(20)))
    expected = dict(alone.named_buffers())
    for states in world.run(shards, 2):
        for state in states:
            for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
                assert torch.allclose(state[name], expected[name], rtol=1e-10), name


def cases():
    """How to read, and which batches of DATA each rank has; of the last one a batch is not finite."""
    for name, options in (
        ("batch", {"upstream": "batch"}),
        ("meeting", {"upstream": "population"}),
        ("layer by layer", {"upstream": "population", "memory": 1, "exact": True}),
        ("batch until", {"upstream": "batch", "until": 0.3}),
        ("population until", {"upstream": "population", "until": 0.3}),
    ):
        for parts in (((), range(12)), (range(12), ()), (range(3), range(3, 12))):
            # Two that have data stop later than one process does.
            if "until" not in options or not all(parts):
                yield name, options, parts


SPOILED = {2: 4}


def batches_of(numbers, spoiled=False):
    found = [DATA[5 * k : 5 * k + 5].clone() for k in numbers]
    for place, number in enumerate(numbers):
        if spoiled and number in SPOILED:
            found[place][0, 0, 0, 0] = torch.nan
    return found


def with_nothing(rank, ranks):
    found = []
    for _, options, parts in cases():
        for spoiled in (False, True):
            net = model()
            result = batchnorm.recalibrate(
                net, batches_of(parts[rank], spoiled), process_group=torch.distributed.group.WORLD, **options
            )
            told = result.samples, result.batches, {name: row.count for name, row in result.layers.items()}
            found.append((told, result.converged, {name: value.clone() for name, value in net.named_buffers()}))
    return found


@pytest.mark.slow
def test_a_rank_without_data_takes_part_with_nothing():
    first, second = world.run(with_nothing, 2)
    index = 0
    for name, options, _ in cases():
        for spoiled in (False, True):
            alone = model()
            result = batchnorm.recalibrate(alone, batches_of(range(12), spoiled), **options)
            for told, converged, state in (first[index], second[index]):
                assert converged
                assert told == (result.samples, result.batches, {k: row.count for k, row in result.layers.items()})
                for key, expected in alone.named_buffers():
                    assert torch.allclose(state[key].double(), expected.double(), rtol=1e-10), (name, key)
            assert all(torch.equal(a, second[index][2][key]) for key, a in first[index][2].items())
            index += 1


def nobody(rank, ranks):
    told = []
    for upstream in ("batch", "population"):
        for loader in ([], [torch.full_like(DATA[:5], torch.nan)] if rank else []):
            with pytest.raises(batchnorm.BatchNormError) as caught:
                batchnorm.recalibrate(model(), loader, upstream=upstream, process_group=torch.distributed.group.WORLD)
            told.append(str(caught.value))
    return told


def test_no_data_on_any_rank_is_said_by_all():
    for told in world.run(nobody, 2):
        for empty, broken in (told[:2], told[2:]):
            assert "loader must yield at least one batch; it was empty" in empty
            assert "NaN or infinity reached layer '1' in all 1" in broken


def asleep(rank, ranks):
    """A loader that hangs on rank 1."""

    def loader():
        yield DATA[:20]
        if rank:
            time.sleep(8)
        yield DATA[20:40]

    with pytest.raises(batchnorm.BatchNormError) as caught:
        batchnorm.recalibrate(model(), loader(), process_group=torch.distributed.group.WORLD)
    return str(caught.value)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named():
    told, _ = world.run(asleep, 2, timeout=3)
    assert "every rank must reach the next exchange of recalibrate; rank 0 waited 3 s for the others" in told
    assert "rank 1 did not come" in told


class Loader:
    """Batches from a disk that fails on rank 1."""

    def __init__(self, rank):
        self.rank = rank

    def __iter__(self):
        yield DATA[:20]
        if self.rank:
            raise OSError("the disk is full")
        yield DATA[20:40]


def failing(rank, ranks):
    net = model()
    before = {name: value.clone() for name, value in net.named_buffers()}
    with pytest.raises((batchnorm.BatchNormError, OSError)) as caught:
        batchnorm.recalibrate(net, Loader(rank), process_group=torch.distributed.group.WORLD)
    unchanged = all(torch.equal(before[name], value) for name, value in net.named_buffers())
    return type(caught.value).__name__, str(caught.value), unchanged


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_no_model_changes():
    (_, told, unchanged), (_, mine, theirs) = world.run(failing, 2)
    assert unchanged
    assert theirs
    assert "rank 1" in told
    assert "disk is full" in mine
