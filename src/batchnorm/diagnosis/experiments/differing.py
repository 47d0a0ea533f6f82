"""How evaluation inputs differ from the training inputs, and what was done to them: the least that explains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.changes import (
    Change,
    by_channel,
    by_curve,
    by_line,
    by_order,
    interpolated,
    resized,
    turns,
    zooms,
)  # fmt: skip
from batchnorm.diagnosis.experiments.padding import padded_positions
from batchnorm.diagnosis.experiments.parts import by_marks, by_own_gain, by_part
from batchnorm.diagnosis.experiments.scores import labels
from batchnorm.diagnosis.experiments.spectra import by_blocks, by_spectrum, is_cut
from batchnorm.diagnosis.experiments.views import View
from batchnorm.models.batches import tensors

ROWS = 1024  # samples that are kept
KEPT_BYTES = 16 << 20
FEWEST = 8  # samples
SHIFT = 0.25  # standard deviations
SCALE = 0.25  # log ratio of the standard deviations
APART = 0.15  # mean distance of quantiles, in standard deviations
SURE = 4.0  # standard errors
CHANCE = 5.0  # times sqrt(1 / n + 1 / m), of the farthest of many columns
EXPLAINS = 0.34  # of the distance before
CLASSES = 0.15  # total variation between the predicted classes
PADDING = 0.1  # of the positions
WORDS = 1 << 20  # numbers beyond are no tokens


@dataclass
class Sample:
    """The model's inputs as far as there is room, their classes, predicted and given, and the padding on each side."""

    inputs: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    padding: list[Tensor] = field(default_factory=list)
    seen: int = 0
    count: int = 0
    bytes: int = 0
    stride: int = 1

    def add(self, batch: Any, output: Tensor | None) -> None:
        """One batch; where there is no more room, of all batches so far every second sample is kept."""
        x = next(tensors(batch), None)
        if x is None or x.is_complex() or x.dtype == torch.bool or x.dim() < 2 or not x.numel():
            return
        labelled = output is not None and output.dim() == 2 and output.shape[0] == x.shape[0] and output.shape[1] > 1
        rows = slice(-self.seen % self.stride, None, self.stride)
        self.seen += len(x)
        if labelled and output is not None:
            self.classes.append(output.argmax(1)[rows].cpu())
            given = labels(output, batch)
            self.labels += [] if given is None else [given[rows].cpu()]
        self.padding.append(_sides(padded_positions(batch), len(x))[rows])
        self.inputs.append(x.detach()[rows].cpu().clone())
        self.count += len(self.inputs[-1])
        self.bytes += self.inputs[-1].numel() * x.element_size()
        if self.count > 2 * ROWS or (self.count > FEWEST and self.bytes > KEPT_BYTES):
            self.stride *= 2
            for name in ("inputs", "classes", "labels", "padding"):
                at, kept = 0, []
                for part in getattr(self, name):
                    kept.append(part[at % 2 :: 2].clone())
                    at += len(part)
                setattr(self, name, [part for part in kept if len(part)])
            self.count, self.bytes = (self.count + 1) // 2, self.bytes // 2

    @property
    def table(self) -> Tensor | None:
        """All inputs, cropped to the least size of any batch; None where they are too few, or no numbers."""
        kinds = {(t.dim(), t.shape[1] if t.dim() > 2 else 0) for t in self.inputs}
        if len(kinds) != 1 or self.count < FEWEST:
            return None
        if not self.inputs[0].is_floating_point() and self.inputs[0].dim() < 4:
            return None
        x = torch.cat(_cropped(self.inputs)).float()
        finite = torch.isfinite(x.flatten(1)).all(1)
        return x[finite] if int(finite.sum()) >= FEWEST else None

    def sizes(self) -> set[torch.Size]:
        """Of positions, of all batches."""
        return {t.shape[2:] for t in self.inputs if t.dim() > 2}


def _cropped(parts: list[Tensor], middle: bool = False) -> list[Tensor]:
    """All to the least size of any, from the start or from the middle."""
    least = [min(sizes) for sizes in zip(*(t.shape[1:] for t in parts), strict=True)]
    for axis, size in enumerate(least, 1):
        parts = [t.narrow(axis, (t.shape[axis] - size) // 2 if middle else 0, size) for t in parts]
    return parts


def difference(training: Sample, evaluation: Sample) -> Change:
    """Compare the two: tokens, size, padding, values, spectrum, in that order; unless other classes explain it."""
    words = _tokens(training, evaluation)
    x, y = training.table, evaluation.table
    if x is None or y is None or x.dim() != y.dim() or x.shape[1] != y.shape[1]:
        return _said([Change(words)] if words else [*_padding(training, evaluation)])
    found: list[Change] = []
    if x.dim() > 2 and not training.sizes() & evaluation.sizes() and len(training.sizes()) == 1:
        middle = _cropped([x, y], middle=True)
        cut = is_cut(middle, [interpolated(v, middle[0].shape[2:]) for v in (x, y)])
        found.append(resized(x, y, cut))
        x, y = middle if cut else (x, interpolated(y, x.shape[2:]))
    elif x.shape != y.shape:
        x, y = _cropped([x, y])
    found += _padding(training, evaluation) or _dead(x, y)
    padded = bool(found) and "padding" in found[-1].words
    a, b = View(x), View(y)
    blocks = None if found else by_blocks(a, b)
    if blocks is not None:
        found.append(blocks)
        a = blocks.pair(a, b)[0]
    values, rough = (0.0, (None, 0.0)) if padded else (apart(a, b), by_spectrum(a, b))
    if values > 0 or (rough[1] > 0 and not found):
        only_classes = _only_classes(a, b, rough[1], training, evaluation)
        if only_classes and not found:
            return Change("the classes have other shares", by_class=True)
        # What resizing or compressing did to the spectrum is no change of its own.
        found += [] if only_classes else _explained(a, b, values, (None, 0.0) if found else rough)
    return _said(found)


def _said(found: list[Change]) -> Change:
    """Changes one after the other, as one."""
    if not found:
        return Change()
    applied, undone = [c.apply for c in found], [c.undo for c in reversed(found)]
    return Change(
        "; ".join(c.words for c in found),
        apply=None if None in applied else lambda v: reduce(_then, applied, v),
        undo=None if None in undone else lambda v: reduce(_then, undone, v),
        code=found[0].code if len(found) == 1 else "",
        usual=all(c.usual for c in found),
    )


def _then(v: Tensor, function: Any) -> Tensor:
    return function(v)


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


def _explained(x: View, y: View, values: float, rough: tuple[Change | None, float]) -> list[Change]:
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


def _sides(valid: Tensor | None, samples: int) -> Tensor:
    """The shares of padded positions in front of each sample's data and behind them."""
    if valid is None or valid.dim() != 2:
        return torch.zeros(samples, 2)
    before = valid.long().cumsum(1) == 0
    return torch.stack([before.float().mean(1), (~valid & ~before).float().mean(1)], 1).cpu()


def _padding(training: Sample, evaluation: Sample) -> list[Change]:
    """Another share of padded positions, or the other side."""
    a, b = torch.cat(training.padding).double(), torch.cat(evaluation.padding).double()
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    step = (b.mean(0) - a.mean(0)).abs()
    if bool((step > torch.clamp(SURE * error, min=PADDING)).any()):
        before, behind = (f"{v[0]:.0%} in front and {v[1]:.0%} behind" for v in (b.mean(0), a.mean(0)))
        return [Change(f"padding takes up {before} of evaluation inputs, {behind} of training inputs")]
    return []


def _dead(x: Tensor, y: Tensor) -> list[Change]:
    """Positions where all evaluation inputs are alike, and training inputs are not."""
    one, other = ((v == v[:1]).flatten(2).all(1).all(0).double().mean() if v.dim() > 2 else 0.0 for v in (x, y))
    if other - one <= PADDING:
        return []
    return [
        Change(f"{other:.0%} of the positions are the same in all evaluation inputs (padding), {one:.0%} in training")
    ]


def _tokens(training: Sample, evaluation: Sample) -> str:
    """Whether numbers of words occur with other frequencies, beyond what two halves of the training data show."""
    every = [*training.inputs, *evaluation.inputs]
    if not training.inputs or not evaluation.inputs or any(t.is_floating_point() or t.dim() != 2 for t in every):
        return ""
    rows = [row for t in training.inputs for row in t]
    parts = [torch.cat(v) for v in (rows[::2], rows[1::2], [row for t in evaluation.inputs for row in t])]
    if min(int(p.min()) for p in parts) < 0 or max(int(p.max()) for p in parts) > WORDS:
        return ""
    one, two, other = (torch.bincount(p) for p in parts)
    size = max(len(one), len(two))
    whole = sum(functional.pad(v, (0, size - len(v))) for v in (one, two))
    far, chance = variation(whole, other), variation(one, two)  # pyright: ignore[reportArgumentType]
    chance *= (0.25 + 0.25 * len(rows) / max(evaluation.count, 1)) ** 0.5
    limit = max(CLASSES, 2 * chance)
    if far < limit:
        return ""
    size = max(len(whole), len(other))  # pyright: ignore[reportArgumentType]
    p, q = (functional.pad(v, (0, size - len(v))).double() for v in (whole, other))  # pyright: ignore
    most = int((p / p.sum() - q / q.sum()).abs().argmax())
    others = torch.arange(size) != most
    if variation(p[others], q[others]) < limit:
        return (
            f"number {most} takes up {q[most] / q.sum():.0%} of evaluation inputs, {p[most] / p.sum():.0%} of training "
            "inputs: padding of other lengths, or unknown words"
        )
    return (
        f"tokens occur with other frequencies in evaluation inputs (total variation {far:.2f}; chance {chance:.2f}): "
        "another vocabulary, tokenizer or language"
    )


def _only_classes(one: View, other: View, rough: float, training: Sample, evaluation: Sample) -> bool:
    """Whether other shares of the classes (predicted, if there are no labels) explain it: within each, inputs agree."""
    a, b = one.grid.double(), other.grid.double()
    if not training.classes or not evaluation.classes:
        return False
    # Predictions follow what was done to the inputs; labels, where there are any, do not.
    labelled = bool(training.labels and evaluation.labels)
    first, second = (torch.cat(s.labels if labelled else s.classes) for s in (training, evaluation))
    if len(first) != len(a) or len(second) != len(b):
        return False
    if variation(torch.bincount(first), torch.bincount(second)) < CLASSES:
        return False
    std = a.std(0).square().mean().sqrt().clamp_min(1e-12)

    def moved(x: Tensor, y: Tensor) -> float:
        noise = (x.var(0) / len(x) + y.var(0) / len(y)) / std.square()
        return float((((y.mean(0) - x.mean(0)) / std).square() - noise).mean())

    within, weight, wide = 0.0, 0.0, []
    for label in torch.unique(second):
        x, y = a[first == label], b[second == label]
        if len(x) < 8 or len(y) < 8:
            continue
        within += len(y) * moved(x, y)
        wide += [float((y.var(0).sum() / x.var(0).sum().clamp_min(1e-30)).log()) / 2] * len(y)
        weight += len(y)
    if weight < 0.5 * len(b):
        return False
    shift, left = (math.sqrt(max(v, 0.0)) for v in (moved(a, b), within / weight))
    if left >= max(0.5 * shift, 0.1) or abs(sum(wide) / len(wide)) >= SCALE:
        return False
    members = [(torch.where(first == label)[0], int((second == label).sum())) for label in torch.unique(second)]
    rows = torch.cat([at[torch.arange(count) % len(at)] for at, count in members if len(at)])
    return by_spectrum(View(one.x[rows]), other)[1] <= EXPLAINS * rough


def other_shares(training: Sample, evaluation: Sample) -> tuple[Tensor, float] | None:
    """Where labels have other shares: the log ratio by class, and what part of the loss of accuracy they explain.

    Explained is what comes back when evaluation samples are weighed as if they had the training's shares.
    """
    samples = training, evaluation
    if not all(s.labels and sum(map(len, s.labels)) == sum(map(len, s.classes)) for s in samples):
        return None
    ours, theirs = (torch.cat(s.labels) for s in samples)
    right, rights = ((torch.cat(s.classes) == torch.cat(s.labels)).double() for s in samples)
    size = int(torch.cat([ours, theirs]).max()) + 1
    counts = [torch.bincount(v, minlength=size).double() for v in (ours, theirs)]
    if variation(*counts) <= max(CLASSES, (size * (1 / len(ours) + 1 / len(theirs))) ** 0.5):
        return None
    p, q = ((v + 0.5) / (v + 0.5).sum() for v in counts)
    weight = (p / q)[theirs]
    lost, back = right.mean() - rights.mean(), (weight * rights).sum() / weight.sum() - rights.mean()
    return (q / p).log(), float(back / lost) if lost > 0 else 0.0


def variation(a: Tensor, b: Tensor) -> float:
    """The total variation between two counts of classes."""
    size = max(len(a), len(b))
    p, q = (functional.pad(v.double(), (0, size - len(v))) for v in (a, b))
    return float((p / p.sum() - q / q.sum()).abs().sum() / 2)
