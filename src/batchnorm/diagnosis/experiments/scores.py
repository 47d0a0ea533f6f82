"""The metric per unit: per sample where it is a mean over samples, else per batch; and which way it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.slices import mapped, rows, sliceable
from batchnorm.failures import one_number
from batchnorm.models.batches import count_samples, tensors
from batchnorm.models.outputs import first_output

Metric = Callable[[Any, Any], Any]
Units = tuple[list[float], list[int]]
PIECES = 64  # a batch is cut into so many parts at most
PAIRS = 512  # units whose outputs are held against other samples
OUTPUTS = 16  # batches whose outputs are kept for that
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
IGNORED = (-100, 255)
SURE = 3.0  # standard errors, before it is said which way the metric goes


class Scorer:
    """Applies a metric to outputs under several conditions, always to the same parts of the same batches."""

    def __init__(self, metric: Metric, higher_is_better: bool | None = None, given: bool = True) -> None:
        self.metric, self.higher_is_better, self.given = metric, higher_is_better, given
        self.unit = "samples"
        self._outputs: list[tuple[Any, int]] = []
        self._guesses: dict[str, list[tuple[float, float]]] = {}

    def start(self) -> None:
        """A new pass over the data."""
        self._outputs = []

    @torch.no_grad()
    def score(self, condition: str, output: Any, batch: Any, number: int = 0) -> Units:
        """The values and sizes of one batch's units."""
        output = output if self.given else first_output(output)
        legal = "metric must take the model's output and the batch, and return one number"
        whole = one_number(lambda: self.metric(output, batch), legal, f"at batch {number} ")
        samples = count_samples(batch)
        found: Units = ([whole], [samples])
        if self.unit == "samples" and samples > 1:
            parts = self._parts(output, batch, samples)
            if parts is not None and _agree(parts, whole):
                found = parts
            else:
                self.unit = "batches"
        self._guess(condition, output, batch, found)
        return found

    def _parts(self, output: Any, batch: Any, samples: int) -> Units | None:
        if not (sliceable(output, samples) and sliceable(batch, samples)):
            return None
        size = -(-samples // PIECES)
        cuts = [(start, min(start + size, samples)) for start in range(0, samples, size)]
        try:
            values = [float(self.metric(rows(output, a, b), rows(batch, a, b))) for a, b in cuts]
        except Exception:
            return None  # a metric that needs the whole batch
        return values, [b - a for a, b in cuts]

    def _guess(self, condition: str, output: Any, batch: Any, parts: Units) -> None:
        """The metric of outputs that belong to other samples: what knowing nothing gives."""
        samples = count_samples(batch)
        found = self._guesses.setdefault(condition, [])
        if len(found) >= PAIRS:
            return
        others: list[Any] = []
        if samples > 1 and sliceable(output, samples):
            others.append(mapped(output, lambda t: t.roll(samples // 2, 0)))
        # Of another batch too, half as far into the data: a sorted loader's batches hold one kind each.
        index = len(self._outputs)
        if index and self._outputs[index // 2][1] == samples:
            others.append(self._outputs[index // 2][0])
        if index < OUTPUTS:
            self._outputs.append((output, samples))
        for other in others:
            try:
                guess = self._parts(other, batch, samples) if len(parts[0]) > 1 else None
                guess = guess or ([float(self.metric(other, batch))], [samples])
            except Exception:
                continue  # outputs that fit no other batch
            if len(guess[0]) == len(parts[0]):
                found += list(zip(parts[0], guess[0], strict=True))

    def knows(self, condition: str) -> float:
        """How far the metric lies from that of outputs held against other samples, in deviations of a unit's."""
        table = torch.tensor(self._guesses.get(condition, []), dtype=torch.float64).reshape(-1, 2)
        table = table[torch.isfinite(table).all(1)]
        if len(table) < 2:
            return math.inf
        apart, spread = (table[:, 0] - table[:, 1]).mean().abs(), table[:, 1].std()
        return float(apart / spread) if spread > 0 else math.inf

    def chance(self) -> float | None:
        """What guessing gives, under the condition that is surest to be better or worse."""
        best = self._surest()
        return None if best is None else best[1]

    @property
    def direction(self) -> float:
        """1 where larger is better, -1 where smaller is, 0 where it cannot be told."""
        if self.higher_is_better is not None:
            return 1.0 if self.higher_is_better else -1.0
        best = self._surest()
        return 0.0 if best is None or best[2] < SURE else math.copysign(1.0, best[0] - best[1])

    def _surest(self) -> tuple[float, float, float] | None:
        """Right, guessed, and how many standard errors they are apart."""
        found = []
        for pairs in self._guesses.values():
            table = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
            table = table[torch.isfinite(table).all(1)]
            if len(table):
                right, guessed = (float(v) for v in table.mean(0))
                apart = table[:, 0] - table[:, 1]
                error = float(apart.std() / len(table) ** 0.5) if len(table) > 1 else math.inf
                # One value, or all alike: as sure as its size.
                sure = abs(right - guessed) / error if 0 < error < math.inf else 0.0
                if not sure and abs(right - guessed) > 0.1 * max(abs(right), abs(guessed)):
                    sure = SURE
                found.append((right, guessed, sure))
        return max(found, key=lambda row: row[2], default=None)


def labels(output: Any, batch: Any) -> Tensor | None:
    """The batch's class of each sample or position, where it has integers behind its input that fit the output."""
    return _classes(first_output(output), batch)[1]


def agreement(output: Any, batch: Any) -> float:
    """The share of samples or positions whose class has the largest output."""
    scores = first_output(output)
    axis, found = _classes(scores, batch)
    if scores is None or found is None:
        return math.nan
    counted = ~_ignored(found)
    return float((scores.argmax(axis) == found.to(scores.device))[counted.to(scores.device)].double().mean())


def _classes(scores: Tensor | None, batch: Any) -> tuple[int, Tensor | None]:
    """The axis of classes of an output, and the batch's tensor of classes that fits the others."""
    if scores is None or scores.dim() < 2:
        return 1, None
    for axis in sorted({1, scores.dim() - 1}):
        shape, classes = scores.shape[:axis] + scores.shape[axis + 1 :], scores.shape[axis]
        found = [t for t in list(tensors(batch))[1:] if t.shape == shape and t.dtype in INTEGERS]
        if len(found) == 1 and classes > 1:
            known = found[0][~_ignored(found[0])]
            if known.numel() and bool(((known >= 0) & (known < classes)).all()):
                return axis, found[0]
    return 1, None


def _ignored(classes: Tensor) -> Tensor:
    """Positions without a class, as losses and datasets of segmentation mark them; samples always have one."""
    return torch.isin(classes, torch.tensor(IGNORED, device=classes.device)) & (classes.dim() > 1)


def _agree(parts: Units, whole: float) -> bool:
    """Whether the metric of a batch is the mean over its parts."""
    mean = sum(v * w for v, w in zip(*parts, strict=True)) / sum(parts[1])
    same = abs(mean - whole) <= 1e-4 * (1e-3 + abs(whole))
    return same or not math.isfinite(whole)
