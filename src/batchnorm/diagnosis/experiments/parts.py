"""Changes that not every value shares: of a part of the samples, of each sample by itself, of marked values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.changes import NAMED, SURE, Change, random, wide
from batchnorm.diagnosis.experiments.views import View

PART = 0.05  # of the samples, at least
MOST = 0.9  # at most: what is done to nearly all is done to all
FEWEST = 8  # samples of a part
BEYOND = 0.25  # of the range of the training samples
OWN = 0.25  # by which the samples' log scales, or their levels in deviations, spread wider
MARKED = 0.02  # of the values
COMMON = 8  # most frequent values that are looked at
ALL = 0.98  # of the values of a column that holds nothing else
MEDIANS = 32  # columns whose medians are printed


def by_part(x: View, y: View, explained: Callable[[View, View], Change | None]) -> Change | None:
    """Samples that lie outside all training samples, if one change explains them, and the others are as in training."""
    centre, scale = x.quantiles[:, len(x.quantiles[0]) // 2], x.spread

    def sizes(v: Tensor) -> Tensor:
        z = (v - wide(centre, v)) / wide(scale, v).clamp_min(1e-12)
        return torch.stack([z.abs().log1p().flatten(1).mean(1), _levels(v)[1].log()], 1)

    low, high = sizes(x.x).aminmax(dim=0)
    low, high = low - BEYOND * (high - low), high + BEYOND * (high - low)

    def outside(v: Tensor) -> Tensor:
        now = sizes(v)
        return ((now < low.to(now)) | (now > high.to(now))).any(1)

    out = outside(y.x)
    share = float(out.double().mean())
    if not PART <= share <= MOST or int(out.sum()) < FEWEST:
        return None
    found = explained(x, View(y.x[out]))
    if found is None or found.apply is None or found.undo is None or by_own_gain(x, View(y.x[out])) is not None:
        return None
    apply, undo = found.apply, found.undo

    def some(v: Tensor) -> Tensor:
        return torch.where(wide(random(v[:, :1].flatten(1)[:, 0], torch.rand) < share, v, 0), apply(v), v)

    def back(v: Tensor) -> Tensor:
        return torch.where(wide(outside(v), v, 0), undo(v), v)

    farthest, least = x.x.abs().flatten(1).amax(1).max(), y.x[out].abs().flatten(1).amax(1).min()
    larger = f"(args[0].abs().flatten(1).amax(1) > {float(farthest):.4g}).view({[-1] + [1] * (y.x.dim() - 1)})"
    code = f"torch.where({larger}, {found.code}, args[0])"
    words = f"{share:.0%} of the evaluation samples lie outside all training samples: {found.words}"
    return Change(words, some, back, code if found.code and least > farthest else "", alike=back)


def by_own_gain(x: View, y: View) -> Change | None:
    """A scale or a level of its own for each sample, where training samples have much the same."""
    if not x.spatial:
        return None
    (m, s), (n, t) = _levels(x.x), _levels(y.x)
    usual, level = float(s.median()), float(m.median())
    chance = SURE * (1 / len(m) + 1 / len(n)) ** 0.5
    spreads = (_width(s.log()), _width(t.log())), (_width(m) / usual, _width(n) / float(t.median()))
    if all(wider - before < max(OWN, chance * wider) for before, wider in spreads):
        return None
    low, high = (float(torch.quantile(t / usual, q)) for q in (0.05, 0.95))

    def some(v: Tensor) -> Tensor:
        pick = (random(v.flatten(1)[:, 0], torch.rand) * len(n)).long().clamp_max(len(n) - 1)
        mean, std = _levels(v)
        return wide(t[pick.cpu()], v, 0) * (v - wide(mean, v, 0)) / wide(std, v, 0) + wide(n[pick.cpu()], v, 0)

    def back(v: Tensor) -> Tensor:
        mean, std = _levels(v)
        return usual * (v - wide(mean, v, 0)) / wide(std, v, 0) + level

    words = (
        f"every evaluation sample has a scale and a level of its own (from {low:.2g} to {high:.2g} times the training "
        "inputs'): exposure, gain or volume"
    )
    return Change(words, some, back, alike=back)


def _levels(v: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample the mean and the deviation of all values."""
    std, mean = torch.std_mean(v.float().flatten(1), 1)
    return mean, std.clamp_min(1e-12)


def _width(v: Tensor) -> float:
    """The deviation of a normal distribution with these quantiles, of which the relative error is about 1 / sqrt(n)."""
    return float(torch.quantile(v, 0.9) - torch.quantile(v, 0.1)) / 2.563


def by_marks(x: View, y: View) -> Change | None:
    """Values that are exactly the same far more often than in training: cells that are missing, dead pixels."""
    columns = [v.x.T if not v.spatial else v.x.flatten()[None] for v in (x, y)]
    marks: dict[int, list[tuple[float, float]]] = {}
    for i, (p, q) in enumerate(zip(*columns, strict=True)):
        value, count = torch.unique(q, return_counts=True)
        for at in count.topk(min(COMMON, len(count))).indices.tolist():
            share = float(count[at]) / len(q)
            more = share - float((p == value[at]).double().mean())
            if more > max(MARKED, SURE * (share / len(q)) ** 0.5):
                marks.setdefault(i, []).append((float(value[at]), more))
    if not marks:
        return None
    medians = x.quantiles[:, len(x.quantiles[0]) // 2].float()

    def some(v: Tensor) -> Tensor:
        v = v.clone()
        chance = random(v, torch.rand)
        for i, found in marks.items():
            part, at = (v, chance) if y.spatial else (v[:, i], chance[:, i])
            below = 0.0
            for value, more in found:
                part[(at >= below) & (at < below + more)] = value
                below += more
        return v

    def hits(v: Tensor) -> Tensor:
        hit = torch.zeros_like(v, dtype=torch.bool)
        for i, found in marks.items():
            part, at = (v, hit) if y.spatial else (v[:, i], hit[:, i])
            for value, _ in found:
                at |= part == value
        return hit

    def back(v: Tensor) -> Tensor:
        hit = hits(v)
        return torch.where(hit, _near(v, hit, wide(medians, v).expand_as(v)), v)

    def fill(v: Tensor) -> Tensor:
        rows = (random(v[:, :1].flatten(1)[:, 0], torch.rand) * len(x)).long().clamp_max(len(x) - 1)
        return torch.where(hits(v), x.x[rows], v)

    values = sorted({value for found in marks.values() for value, _ in found})
    share = sum(more for found in marks.values() for _, more in found) / len(columns[1])
    lost = [i for i, found in marks.items() if found[0][1] > ALL]
    if lost and len(lost) == len(marks) and not y.spatial:
        named = ", ".join(map(str, lost[:NAMED])) + (f" and {len(lost) - NAMED} more" if len(lost) > NAMED else "")
        return Change(
            f"column {named} of the evaluation inputs holds one value alone: missing, or filled in", some, alike=fill
        )
    shown = ", ".join(f"{v:.4g}" for v in values[:NAMED])
    what = "dead or saturated positions" if y.spatial else "missing values"
    code = ""
    if len(values) == 1 and not y.spatial and len(medians) <= MEDIANS:
        listed = [float(f"{v:.4g}") for v in medians.tolist()]
        code = f"torch.where(args[0] == {values[0]:g}, torch.tensor({listed}), args[0])"
    return Change(
        f"{share:.0%} of the evaluation values are {shown}, far more than in training: {what}",
        some,
        back,
        code,
        alike=fill,
    )


def _near(v: Tensor, hit: Tensor, other: Tensor) -> Tensor:
    """The mean of the neighbours that are not marked; other where there are none, or no neighbours."""
    if v.dim() not in (3, 4):
        return other
    pool = functional.avg_pool1d if v.dim() == 3 else functional.avg_pool2d
    kept = (~hit).to(v.dtype)
    weight = pool(kept, 3, 1, 1)
    return torch.where(weight > 0, pool(v.masked_fill(hit, 0), 3, 1, 1) / weight.clamp_min(1e-12), other)
