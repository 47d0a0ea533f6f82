"""Where not all batches fit in memory: what part is read, what is said, and how far it is from all of them."""

import itertools
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
from batchnorm.models.recalibration.correlation import deviation_limits
from batchnorm.models.recalibration.memory import Pilot
from batchnorm.models.recalibration.part import part_of_data, spread


def network(depth=4):
    torch.manual_seed(0)
    blocks = [m for _ in range(depth) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *blocks).eval()


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    light = torch.randn(count, 1, 1, 1, generator=generator)
    return (
        torch.randn(count, 3, 6, 6, generator=generator) * (1 + torch.rand(count, 1, 1, 1, generator=generator)) + light
    )


class Counted(nn.Sequential):
    """Counts its forwards outside of itself, where nothing is put back."""

    def __init__(self, calls):
        super().__init__(*network())
        self.note = lambda: calls.append(1)
        self.eval()

    def forward(self, x):
        self.note()
        return super().forward(x)


def apart(model, other, name):
    a, b = model.get_submodule(name), other.get_submodule(name)
    var = b.running_var + b.eps
    of_std = ((a.running_var + a.eps) / var).sqrt() - 1
    return float(((a.running_mean - b.running_mean).square() / var + of_std.square()).mean().sqrt())


@pytest.mark.parametrize("seed", range(4))
def test_a_part_is_within_twice_its_standard_error_and_takes_few_forwards(seed, capsys):
    calls = []
    data, exact, model = images(8 * 100, seed).split(8), Counted([]), Counted(calls)
    batchnorm.recalibrate(exact, data, exact=True)
    result = batchnorm.recalibrate(model, data, memory=400_000)
    assert 8 <= result.batches < 100
    assert len(calls) <= 3 * 100
    assert result.forwards == len(calls) / 100
    assert result.spread
    assert max(result.residual.values()) < 1e-6
    for name, row in result.layers.items():
        assert apart(model, exact, name) < 2 * row.standard_error
    said = capsys.readouterr().err
    assert f"Reading {result.batches} of 100 batches (spread over the loader); standard error" in said
    assert "All 100 batches: " in said
    assert said.strip().endswith("exact=True.")
    assert "A part of the data was read." in str(result)


def foretold(plan):
    """The range of the standard error in a plan."""
    low, high = re.search(r"standard error ([\d.e-]+) to ([\d.e-]+) standard deviations", plan).groups()
    return float(low), float(high)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loader", [list, iter], ids=["list", "generator"])
def test_the_error_said_before_holds_what_the_result_states(seed, loader):
    """The stored statistics are those of no data, and one image in eight is 5 times as bright as the others."""
    data = images(8 * 100, seed)
    data[seed::8] *= 5
    result = batchnorm.recalibrate(network(), loader(data.split(8)), memory=400_000, progress=False)
    low, high = foretold(result.plan)
    assert low <= result.standard_error <= high <= 10 * low


@pytest.mark.parametrize(("free", "low", "high"), [(7, 16.013, 1.690), (30, 46.979, 16.791)])
def test_limits_of_a_standard_deviation_are_those_of_chi_square(free, low, high):
    """Quantiles of chi-square from tables."""
    assert deviation_limits(free) == pytest.approx(((free / low) ** 0.5, (free / high) ** 0.5), rel=0.01)


@pytest.mark.parametrize(("bad", "said"), [(1, "of the order of 0.0"), (0, "not known beforehand.")])
def test_without_eight_finite_batches_one_batch_tells_the_order_of_the_error(bad, said):
    data = images(8 * 100)
    data[8 * bad, 0, 0, 0] = torch.inf
    result = batchnorm.recalibrate(network(), iter(data.split(8)), memory=400_000, progress=False)
    assert [number for number, _ in result.skipped] == [bad]
    assert f"standard error {said}" in result.plan


def test_what_fits_is_read_whole_and_nothing_is_said(capsys):
    result = batchnorm.recalibrate(network(), images(64).split(8))
    assert (result.batches, result.plan, result.spread) == (8, "", False)
    assert capsys.readouterr().err == ""


def test_never_more_than_three_forwards_whatever_the_memory():
    for memory in (1, 20_000, 100_000):
        calls = []
        batchnorm.recalibrate(Counted(calls), images(400).split(8), memory=memory)
        assert len(calls) <= 3 * 50


def test_the_part_is_spread_over_what_can_be_indexed():
    data = images(80)
    for loader in (list(data.split(8)), DataLoader(TensorDataset(data), 8)):
        part, numbers = spread(loader, 5)
        assert [2 * k <= number < 2 * k + 2 for k, number in enumerate(numbers)] == [True] * 5
        for batch, number in zip(part, numbers, strict=True):
            batch = batch[0] if isinstance(batch, list) else batch
            assert torch.equal(batch, data[8 * number : 8 * number + 8])
    assert spread(DataLoader(TensorDataset(data), 8, shuffle=True), 5) is None
    assert spread(itertools.count(), 5) is None


@pytest.mark.parametrize(
    ("total", "free", "memory", "expected"),
    [
        (10, 1 << 40, None, (10, True)),
        (40_000, 1 << 40, None, (512, True)),  # 512 MiB at 1 MiB each
        (40_000, 1 << 30, None, (256, True)),  # a quarter of what is free
        (1000, 1 << 40, 20 << 20, (20, True)),
        (1000, 1 << 40, 7 << 20, (57, False)),  # fewer than 8 fit: 3 * 1000 // 52 by layers
        (None, 1 << 40, 20 << 20, (20, True)),
    ],
)
def test_how_much_is_read(total, free, memory, expected):
    pilot = Pilot(bytes=1 << 20, samples=8, layers=50, error=0.1, seconds=0.1)
    part = part_of_data(pilot, total, 0, free, memory)
    assert (part.batches, part.meet) == expected


def test_large_batches_take_more_than_the_share_up_to_a_quarter_of_what_is_free():
    pilot = Pilot(bytes=100 << 20, samples=8, layers=50, error=0.1, seconds=0.1)
    assert part_of_data(pilot, 1000, 0, 1 << 40, None).batches == 32


def test_a_generator_is_read_as_far_as_it_fits():
    result = batchnorm.recalibrate(network(), iter(images(400).split(8)), memory=200_000)
    assert 1 < result.batches < 50
    assert "The loader does not say how many it has; exact=True takes all." in result.plan


def test_who_reads_a_part_says_so_by_its_own_name(capsys, monkeypatch):
    monkeypatch.setattr("batchnorm.models.recalibration.settling_run.available", lambda device: 400_000)
    batchnorm.models.adapt(network(), images(8 * 100).split(8), mode="domain")
    assert re.search(r"^batchnorm\.adapt: Reading \d+ of 100 batches", capsys.readouterr().err, re.M)
    batchnorm.recalibrate(network(), images(8 * 100).split(8))
    assert re.search(r"^batchnorm\.recalibrate: Reading \d+ of 100 batches", capsys.readouterr().err, re.M)
