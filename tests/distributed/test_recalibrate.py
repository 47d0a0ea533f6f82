"""Recalibration over ranks: each reads its shard, and all get what one process gets on everything."""

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
