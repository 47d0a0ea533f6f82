"""Motion, turned images, blocks of compression, other sizes: the spectra by direction, and thresholds at their edge."""

import re

import pytest
import torch
from torch.nn import functional

from batchnorm.diagnosis.experiments.spectra import EDGES, SKEW, by_blocks, by_direction, compressed
from batchnorm.diagnosis.experiments.views import View
from tests.diagnosis.inputs import compared


def images(count, seed=0, size=24):
    """Smooth random images, alike in all directions, in a little noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, size + 4, size + 4, generator=g)
    return functional.avg_pool2d(x, 5, 1) * 5 + 0.2 * torch.randn(count, 3, size, size, generator=g)


def across(x, length=5):
    padded = functional.pad(x, (length // 2, length // 2, 0, 0), mode="reflect")
    return functional.avg_pool2d(padded, (1, length), 1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize(("turn", "where"), [(0, "across"), (1, "down")])
def test_motion_is_named_with_its_direction_and_length(noise, turn, where):
    moved = across(images(400, 1).rot90(turn, (2, 3))).rot90(-turn, (2, 3))
    moved = moved + noise * torch.randn(moved.shape, generator=torch.Generator().manual_seed(2))
    change = compared(images(600), moved)
    assert f"smeared {where}, over about 5 positions" in change.words
    said = re.search(r"with noise \(standard deviation (.*?)\) since", change.words)
    assert (said is not None) == bool(noise)
    assert said is None or float(said[1]) == pytest.approx(noise, rel=0.1)


def test_motion_is_undone_as_far_as_noise_allows():
    y = images(400, 1)
    moved = across(y) + 0.5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    change = compared(images(600), moved)
    left, before = ((v - y).square().mean() for v in (change.undo(moved), moved))
    assert left < 0.8 * before
    torch.testing.assert_close(change.apply(y).std(), moved.std(), atol=0.02, rtol=0)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x + 0.5 * torch.randn(x.shape), lambda x: 3 * x + 1])
def test_noise_and_gains_have_no_direction(change):
    torch.manual_seed(0)
    assert "smeared" not in compared(images(600), change(images(400, 1))).words


@pytest.mark.parametrize(("part", "found"), [(0.15, False), (0.25, True)])
def test_directions_that_differ_by_more_than(part, found):
    """Smeared images mixed with sharp ones, and turned: directions differ by just less than SKEW, or by more."""
    x, y = ((1 - part) * v + part * across(v) for v in (images(1500), images(1500, 1)))
    a, b = (v.sectors.log().mean(0) for v in (View(x), View(y.transpose(2, 3))))
    step = float((b - a - (b - a).mean()).abs().max())
    assert (step > SKEW, 0.7 * SKEW < step < 1.5 * SKEW) == (found, True)
    assert (by_direction(View(x), View(y.transpose(2, 3)))[1] > 0) == found


def test_rows_that_became_columns_are_no_motion():
    x, y = across(images(600)), across(images(400, 1))
    assert "exchanged" in compared(x, y.transpose(2, 3)).words
    assert compared(x, y).words == ""


def test_blocks_of_compression_stand_out_by_more_than():
    x, y = View(images(600)), images(400, 1)
    found = []
    for step in (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0):
        z = View(compressed(y, step))
        found.append((z.blocks > EDGES + max(x.blocks, 0.0), by_blocks(x, z) is not None))
    assert all(said is seen for seen, said in found)
    assert {seen for seen, _ in found} == {False, True}
    assert "compressed (JPEG)" in compared(images(600), compressed(y, 6.0)).words


def test_compression_in_steps_of_nothing_changes_nothing():
    x = images(4, size=21)
    torch.testing.assert_close(compressed(x, 1e-4), x, atol=1e-2, rtol=0)
    assert bool((compressed(x, 3.0)[..., 16:, :] == x[..., 16:, :]).all())


@pytest.mark.parametrize(("change", "words"), [
    (lambda x: x[..., 4:20, 4:20], "16 x 16, training inputs 24 x 24: cut to another size, not resized"),
    (lambda x: functional.interpolate(x, size=16, mode="bilinear"), "24 x 24: resized or resampled"),
    (lambda x: functional.interpolate(x, size=48, mode="bilinear"), "24 x 24: resized or resampled"),
])  # fmt: skip
def test_inputs_that_were_cut_are_told_from_resized_ones(change, words):
    assert words in compared(images(600), change(images(400, 1))).words


def test_what_was_cut_is_put_back_in_the_middle():
    x, y = images(600) + torch.arange(24.0), images(400, 1) + torch.arange(24.0)
    back = compared(x, y[..., 4:20, 4:20]).undo(y[..., 4:20, 4:20])
    torch.testing.assert_close(back[..., 4:20, 4:20], y[..., 4:20, 4:20])
    torch.testing.assert_close(back[0, :, 0], x.mean(0)[:, 0])
    torch.testing.assert_close(compared(x[..., 4:20, 4:20], y).undo(y), y[..., 4:20, 4:20])


def test_images_taken_from_nearer_are_told_by_what_stands_where():
    g = torch.Generator().manual_seed(3)

    def discs(count):
        at = torch.linspace(-1, 1, 24)
        radius = 0.45 + 0.08 * torch.randn(count, 1, 1, 1, generator=g)
        disc = (((at[:, None].square() + at.square()).sqrt() - radius) * 8).sigmoid()
        return 1 - disc + 0.1 * torch.randn(count, 1, 24, 24, generator=g)

    def nearer(x):
        return functional.interpolate(x[..., 6:18, 6:18], size=24, mode="bilinear")

    change = compared(discs(600), nearer(discs(400)))
    assert "evaluation inputs show everything about larger (2 times)" in change.words
    assert compared(discs(600), discs(400)).words == ""
