"""What one pass over the data gave under one condition, and how two conditions compare."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.scores import Scorer, Units
from batchnorm.models.outputs import first_output

KEPT_BYTES = 64 << 20  # of outputs, for distances
MOST_CLASSES = 4096


@dataclass
class Outcome:
    """One condition: units of the metric by batch, outputs as long as there is room, and predicted classes."""

    condition: str
    units: dict[int, Units] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    samples: int = 0
    batches: int = 0
    finite: bool = True
    classes: Tensor | None = None
    _bytes: int = 0

    def take(self, index: int, output: Any, samples: int, units: Units | None) -> None:
        """One batch."""
        self.samples, self.batches = self.samples + samples, self.batches + 1
        if units is not None:
            self.units[index] = units
        tensor = first_output(output)
        if tensor is None:
            return
        self.finite = self.finite and bool(torch.isfinite(tensor).all())
        self._count_classes(tensor)
        size = tensor.numel() * tensor.element_size()
        if self._bytes + size <= KEPT_BYTES or not self.outputs:
            self._bytes += size
            self.outputs[index] = tensor.detach()

    def _count_classes(self, output: Tensor) -> None:
        if output.dim() != 2 or not 2 <= output.shape[1] <= MOST_CLASSES:
            return
        found = torch.bincount(output.argmax(1), minlength=output.shape[1]).cpu()
        if self.classes is None or self.classes.shape == found.shape:
            self.classes = found if self.classes is None else self.classes + found

    @property
    def mean(self) -> float | None:
        """The metric over all units; one that has no value on some, of finite outputs, says nothing of them."""
        known = [(v, w) for v, w in zip(*self.flat(), strict=True) if not (self.finite and math.isnan(v))]
        if not known:
            return math.nan if self.units else None
        return sum(v * w for v, w in known) / max(sum(w for _, w in known), 1)

    def flat(self, batches: list[int] | None = None, whole: bool = False) -> Units:
        """The values and sizes of all units, or of those of some batches; whole: one for each batch."""
        values: list[float] = []
        sizes: list[int] = []
        for index in self.units if batches is None else batches:
            found, weights = self.units[index]
            if whole:
                total = sum(weights)
                found, weights = [sum(v * w for v, w in zip(found, weights, strict=True)) / total], [total]
            values += found
            sizes += weights
        return values, sizes

    def distance(self, other: Outcome) -> float | None:
        """Relative to the other's size; None where the outputs cannot be compared, infinite where one is not finite."""
        moved = size = 0.0
        for index, a in self.outputs.items():
            b = other.outputs.get(index)
            if b is None or a.shape != b.shape:
                continue
            moved += float((a - b).double().square().sum())
            size += float(b.double().square().sum())
        if not size > 0:
            return None
        return (moved / size) ** 0.5 if moved == moved else math.inf


def effect(what: str, before: Outcome, after: Outcome, scorer: Scorer | None, noise: float | None = None) -> Effect:
    """What going from one condition to the other does: by the metric where it says which way is better."""
    moved = after.distance(before) if after.finite else before.distance(after)
    if not before.finite and after.finite:
        moved = math.inf
    plain = Effect(what, after.samples, moved=moved, noise=noise, scored=scorer is not None and scorer.given)
    if scorer is None or not scorer.direction:
        return plain
    shared = [index for index in before.units if index in after.units]
    # One pass may have found that the metric is no mean over samples where another has not: then by batch.
    whole = any(len(before.units[i][0]) != len(after.units[i][0]) for i in shared)
    a, b = before.flat(shared, whole), after.flat(shared, whole)
    if not a[0]:
        return plain
    weights = torch.tensor(a[1], dtype=torch.float64)
    first, second = (torch.tensor(v, dtype=torch.float64) for v in (a[0], b[0]))
    if before.finite and after.finite:
        # A metric may have no value on one sample or one class.
        known = ~(first.isnan() | second.isnan())
        weights, first, second = weights[known], first[known], second[known]
    if not len(first):
        return plain
    mean_a, mean_b = ((v * weights).sum() / weights.sum() for v in (first, second))
    if not torch.isfinite(mean_a) or not torch.isfinite(mean_b):
        better = bool(torch.isfinite(mean_b)) - bool(torch.isfinite(mean_a))
        return Effect(what, int(weights.sum()), float(mean_a), float(mean_b), math.inf * better if better else 0.0,
                      0.0, len(first), 1.0, moved, noise)  # fmt: skip
    difference = (second - first) * scorer.direction
    gain = float((difference * weights).sum() / weights.sum())
    count = len(first)
    spread = float((weights.square() * (difference - gain).square()).sum()) * count / max(count - 1, 1)
    error = spread**0.5 / float(weights.sum()) if count > 1 else math.inf
    chance = scorer.chance()
    best = max((float(mean_a), float(mean_b)), key=lambda v: v * scorer.direction)
    scale = abs(best - chance) if chance is not None else max(abs(float(mean_a)), abs(float(mean_b)))
    return Effect(what, int(weights.sum()), float(mean_a), float(mean_b), gain, error, count, scale, moved, noise)
