"""Changes of a part of the samples, of each sample by itself, of marked values; every threshold at its edge."""

import pytest
import torch

from batchnorm.diagnosis.experiments.changes import NAMED, by_line
from batchnorm.diagnosis.experiments.parts import (
    ALL,
    BEYOND,
    COMMON,
    FEWEST,
    MARKED,
    MEDIANS,
    MOST,
    OWN,
    PART,
    by_marks,
    by_own_gain,
    by_part,
)
from batchnorm.diagnosis.experiments.views import View
from tests.diagnosis.inputs import compared


def rows(count, columns=6, seed=0):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) + 3


def larger(y, count):
    return torch.cat([y[:count] * 255, y[count:]])


@pytest.mark.parametrize(("count", "found"), [(19, False), (21, True), (359, True), (361, False)])
def test_a_part_is_neither_a_few_samples_nor_nearly_all(count, found):
    assert (PART, MOST) == (0.05, 0.9)
    change = by_part(View(rows(600)), View(larger(rows(400, seed=1), count)), by_line)
    assert (change is not None) == found
    if found:
        assert change.words.startswith(f"{count / 400:.0%} of the evaluation samples lie outside all training samples")


@pytest.mark.parametrize(("count", "found"), [(FEWEST - 1, False), (FEWEST, True)])
def test_fewer_samples_than_that_are_no_part(count, found):
    assert (by_part(View(rows(600)), View(larger(rows(40, seed=1), count)), by_line) is not None) == found


@pytest.mark.parametrize(("at", "found"), [(1 + BEYOND - 0.1, False), (1 + BEYOND + 0.02, True)])
def test_samples_at_the_edge_of_the_training_samples_are_none_of_another_part(at, found):
    """The logarithm of the samples' scale runs from 0 to 1 in training."""
    pattern = torch.tensor([1.0, -1.0, 2.0, -2.0])
    x = torch.linspace(0, 1, 200).exp()[:, None] * pattern
    y = torch.cat([x[::2], torch.full((60, 1), at).exp() * pattern])
    assert (by_part(View(x), View(y), by_line) is not None) == found


def test_a_part_is_undone_and_the_rest_is_left():
    y = rows(400, seed=1)
    change = compared(rows(600), larger(y, 150))
    torch.testing.assert_close(change.undo(larger(y, 150)), y)
    space = {"torch": torch, "args": (larger(y, 150),)}
    torch.testing.assert_close(eval(change.code, space), y)
    share = float((change.apply(rows(2000)).abs().amax(1) > 20).double().mean())
    assert share == pytest.approx(150 / 400, abs=0.05)


def signals(count, seed=0):
    tone = torch.linspace(0, 6.28 * 4, 64).sin()
    return tone.expand(count, 2, 64) + 0.3 * torch.randn(count, 2, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("deviation", "found"), [(0.9 * OWN, False), (1.2 * OWN, True)])
def test_gains_of_their_own_spread_by_more_than(deviation, found):
    gain = (torch.special.ndtri(torch.linspace(0.001, 0.999, 3000)) * deviation).exp()
    assert (by_own_gain(View(signals(3000)), View(signals(3000, 1) * gain[:, None, None])) is not None) == found


@pytest.mark.parametrize(("count", "found"), [(24, False), (600, True)])
def test_few_samples_show_no_gains_of_their_own(count, found):
    """With 24 of each the error of a deviation is 4 sqrt(2 / 24) of it."""
    x = signals(count) * torch.linspace(-0.5, 0.5, count).exp()[:, None, None]
    y = signals(count, 1) * torch.linspace(-1, 1, count).exp()[:, None, None]
    assert (by_own_gain(View(x), View(y)) is not None) == found


def test_every_sample_is_given_the_usual_scale_and_level():
    gain = torch.randn(400, 1, 1, generator=torch.Generator().manual_seed(2)).exp()
    change = compared(signals(600), signals(400, 1) * gain + gain)
    assert change.words.startswith("every evaluation sample has a scale and a level of its own")
    back = change.undo(signals(400, 1) * gain + gain)
    torch.testing.assert_close(back.std((1, 2)), signals(600).std((1, 2)).median().expand(400), rtol=0.02, atol=0.02)
    assert float(change.apply(signals(600)).std((1, 2)).log().std()) > 0.8


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: 0.2 * x + 0.4, lambda x: x.exp()])
def test_what_is_done_to_all_samples_is_no_gain_of_their_own(change):
    wide = torch.randn(600, 1, 1, generator=torch.Generator().manual_seed(3)).exp()
    words = compared(signals(600) * wide, change(signals(400, 1) * wide[:400])).words
    assert "of its own" not in words
    assert "outside all training samples" not in words


@pytest.mark.parametrize(("share", "found"), [(MARKED - 0.001, False), (MARKED + 0.001, True)])
def test_marks_are_more_than_a_few_values(share, found):
    y = rows(10000, seed=1)
    y[: round(share * 10000), 2] = -999
    assert (by_marks(View(rows(600)), View(y)) is not None) == found


@pytest.mark.parametrize(("share", "found"), [(0.1, False), (0.2, True)])
def test_marks_in_few_rows_are_more_than_chance(share, found):
    """Of 100 rows, 4 sqrt(0.1 / 100) is 13 %."""
    y = rows(100, seed=1)
    y[: round(share * 100), 2] = -999
    assert (by_marks(View(rows(600)), View(y)) is not None) == found


@pytest.mark.parametrize(("others", "found"), [(COMMON - 1, True), (COMMON, False)])
def test_so_many_common_values_are_looked_at(others, found):
    x = torch.arange(1000).remainder(others).float()[:, None].expand(-1, 2)
    y = x.clone()
    y[::17, 0] = -1
    assert (by_marks(View(x), View(y)) is not None) == found


@pytest.mark.parametrize(("share", "lost"), [(ALL - 0.01, False), (ALL + 0.01, True)])
def test_a_column_that_holds_nothing_else_is_missing(share, lost):
    y = rows(1000, seed=1)
    y[: round(share * 1000), 3] = 0.5
    words = by_marks(View(rows(600)), View(y)).words
    assert words.startswith("column 3 of the evaluation inputs holds one value alone") == lost


@pytest.mark.parametrize(("columns", "printed"), [(MEDIANS, True), (MEDIANS + 1, False)])
def test_missing_cells_are_filled_with_the_medians(columns, printed):
    x, y = rows(600, columns), rows(400, columns, 1)
    hit = torch.rand(y.shape, generator=torch.Generator().manual_seed(4)) < 0.2
    marked = torch.where(hit, -999, y)
    change = compared(x, marked)
    assert change.words.startswith("20% of the evaluation values are -999")
    right = torch.where(hit, x.median(0).values, y)
    torch.testing.assert_close(change.undo(marked), right, atol=3e-2, rtol=0)
    assert bool(change.code) == printed
    if printed:
        filled = eval(change.code, {"torch": torch, "args": (marked,)})
        torch.testing.assert_close(filled, right, atol=3e-2, rtol=0)


def test_dead_pixels_are_filled_with_their_neighbours():
    across = torch.linspace(0, 6.28, 16)[:, None] + torch.linspace(0, 6.28, 16)
    x, y = (
        (across + 6.28 * torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(n))).sin() for n in (300, 200)
    )
    noise = torch.rand(y.shape, generator=torch.Generator().manual_seed(5))
    broken = torch.where(noise < 0.1, -3.0, torch.where(noise > 0.9, 3.0, y))
    change = by_marks(View(x), View(broken))
    assert "20% of the evaluation values are -3, 3" in change.words
    assert float((change.undo(broken) - y).square().mean().sqrt()) < 0.25 * float((broken - y).square().mean().sqrt())


def test_a_ceiling_is_no_mark():
    """Two fifths of the values are 3.25 there, all those that would lie above."""
    x, y = rows(2000), rows(2000, seed=1)
    assert "another curve" in compared(x, y.clamp(max=3.25)).words


def test_columns_that_are_named():
    y = rows(400, 12, 1)
    y[:, : NAMED + 1] = 7
    assert (
        "column 0, 1, 2, 3 and 1 more of the evaluation inputs holds one value alone"
        in compared(rows(600, 12), y).words
    )
