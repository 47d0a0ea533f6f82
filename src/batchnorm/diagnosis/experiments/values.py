"""How far the values of two sets of inputs lie apart, and the least that makes the one of the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.changes import Change, by_channel, by_curve, by_line, by_order, turns, zooms
from batchnorm.diagnosis.experiments.parts import by_marks, by_own_gain, by_part
from batchnorm.diagnosis.experiments.sample import FEWEST
from batchnorm.diagnosis.experiments.spectra import by_spectrum
from batchnorm.diagnosis.experiments.views import View

SHIFT = 0.25  # standard deviations
APART = 0.15  # mean distance of quantiles, in standard deviations
SURE = 4.0  # standard errors
CHANCE = 5.0  # times sqrt(1 / n + 1 / m), of the farthest of many columns
EXPLAINS = 0.34  # of the distance before


def distances(x: View, y: View) -> tuple[Tensor, float]:
    """Per channel the mean distance of quantiles, in deviations, and what chance makes of the farthest."""
    p, q = x.quantiles, y.quantiles
    # A channel that is constant in training has no deviation of its own: the others' median.
    live = x.spread[x.spread > 1e-6 * p.abs().mean(1).clamp_min(1e-12)]
    wide = torch.where(x.spread > 1e-6 * p.abs().mean(1), x.spread, live.median() if len(live) else 1.0)
    far = (p - q).abs().mean(1) / wide
    return far, max(APART, CHANCE * (1 / len(x) + 1 / len(y)) ** 0.5)


def apart(x: View, y: View) -> float:
    """How far values and their places lie apart beyond chance; 0 where they do not."""
    far, limit = distances(x, y)
    values, places = float(far.max()), _places(x, y)
    return max(values if values > limit else 0.0, places if places > SHIFT else 0.0)


def _places(x: View, y: View) -> float:
    """The distance of the mean inputs, root mean square over positions, in deviations, without what chance adds."""
    if not x.spatial:
        return 0.0
    (mean, var), (other, wide) = x.places, y.places
    power = var.mean().clamp_min(1e-24)
    noise = (var / len(x) + wide / len(y)) / power
    excess = float(((other - mean).square() / power - noise).mean())
    error = float((noise.square().sum() * 2).sqrt() / len(noise))
    return math.sqrt(excess) if excess > SURE * error else 0.0


def explained(x: View, y: View, values: float, rough: tuple[Change | None, float]) -> list[Change]:
    """The least that makes the one of the other: of values, of the spectrum, of both, or that nothing does."""
    change = _of_values(x, y) if values else None
    if change is not None and change.apply is not None:
        made = change.pair(x, y)
        again, left = by_spectrum(*made) if rough[1] else (None, 0.0)
        if left <= EXPLAINS * rough[1]:
            return [change]
        if again is not None and apart(*again.pair(*made)) <= EXPLAINS * values:
            return [change, again]
    if rough[0] is not None and rough[0].apply is not None:
        made = View(rough[0].apply(x.x))
        if apart(made, y) <= EXPLAINS * values:
            return [rough[0]]
        after = _of_values(made, y)
        return [rough[0], after] if after is not None else [change or rough[0]]
    return [change or _unexplained(x, y)]


def _of_values(x: View, y: View, whole: bool = True) -> Change | None:
    """What was done to the values, or to their places; None where nothing tried explains it (whole: to a part too)."""
    before = apart(x, y)
    far, limit = distances(x, y)
    which = far > limit
    few = not x.spatial and float(which.double().mean()) < 0.7
    lines = [by_line(x, y)] + ([by_line(x, y, -1)] if _turned_over(x, y) else [])
    lines += [c for c in (by_order(x, y),) if c is not None] + turns(x) + zooms(x)
    own = [by_channel(x, y, which)] if bool(which.any()) else []
    # Chance hides a channel that hardly moves: with few of them all are tried as well.
    own += [by_channel(x, y, torch.ones_like(which))] if own and len(which) <= 4 and not bool(which.all()) else []
    tried = [*own, *lines] if few else [*lines, *own]
    if whole:
        curve = by_curve(x, y, which if bool(which.any()) else torch.ones_like(which))
        marks, own = by_marks(x, y), by_own_gain(x, y)
        part = by_part(x, y, lambda a, b: _of_values(a, b, False))
        # Lines for channels, or a curve, may spread the samples' scales too.
        others = by_channel(x, y, torch.ones_like(which)), curve
        ahead = [marks, part, own if all(by_own_gain(c.pair(x, y)[0], y) for c in others) else None]
        tried = [*(c for c in ahead if c is not None), *tried, curve]
    left: list[float] = []
    for change in tried:
        left.append(_left(change, x, y))
        if left[-1] == 0:
            break
    # The first that leaves much less than before, and hardly more than the best; one of many columns is off by chance.
    most = min(EXPLAINS * before, 2 * max(0.0 if x.spatial else limit, min(left)))
    return next((c for c, v in zip(tried, left, strict=False) if v <= most), None)


def _left(change: Change, x: View, y: View) -> float:
    return apart(*change.pair(x, y))


def _turned_over(x: View, y: View) -> bool:
    """Whether the mean inputs, or else the quantiles, say that dark became light."""
    (a, wide), (b, _) = x.places, y.places
    if len(a) >= FEWEST and float(a.std()) > 0.2 * float(wide.mean().sqrt()):
        return float(((a - a.mean()) * (b - b.mean())).sum()) < 0
    return _left(by_line(x, y, -1), x, y) < 0.5 * _left(by_line(x, y), x, y)


def _unexplained(x: View, y: View) -> Change:
    far, limit = distances(x, y)
    moved = max(_places(x, y), float((far * (far > limit)).square().mean().sqrt()))
    wide = float((y.spread / x.spread.clamp_min(1e-30)).log().median().exp())
    return Change(
        f"evaluation inputs lie {moved:.2f} standard deviations from the training inputs, spread {wide:.2g} times as "
        "wide", usual=not _outside(x, y)
    )  # fmt: skip


def _outside(x: View, y: View) -> bool:
    """Whether evaluation inputs lie where no training inputs do; augmentation makes the training inputs wider."""
    a, held, b = x.grid[::2].double(), x.grid[1::2].double(), y.grid.double()
    centre = a.mean(0)
    _, s, v = torch.linalg.svd(a - centre, full_matrices=False)
    used = s > 0.01 * s[0].clamp_min(1e-30)
    axes, wide = v[used][: len(a) // 8 or 1], (s[used] / len(a) ** 0.5)[: len(a) // 8 or 1]

    def far(z: Tensor) -> Tensor:
        inside = (z - centre) @ axes.T
        rest = ((z - centre).square().sum(1) - inside.square().sum(1)).clamp_min(0)
        return torch.stack([(inside / wide).square().mean(1), rest], 1)

    one, other = far(held), far(b)
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    return bool((other.mean(0) - one.mean(0) > torch.maximum(SURE * error, 0.25 * one.mean(0))).any())
