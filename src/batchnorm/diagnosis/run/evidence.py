"""What is known of a run: counts, and a few numbers a layer at every step that was looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.run.modes import Tally
from batchnorm.models.momentum import next_momentum

LONGEST = 512  # points of a layer's timeline; then every second one is dropped
DRIFT = 0.3  # running standard deviations, smoothed over the looks
SURE = 4.0  # standard errors
LOOKS = 10  # before drift is judged
MEMORY = 0.2  # weight of the newest look in the smoothed shift


@dataclass
class Point:
    """One look at one layer; drift and variance are smoothed over the looks, in running standard deviations."""

    step: int
    drift: float
    variance_log_ratio: float
    gain: float | None
    window: float | None
    updates: int | None
    skipped: int


class Lag(NamedTuple):
    """An evaluation after a step, with the smoothed drift there and its standard error."""

    step: int
    drift: float
    standard_error: float


@dataclass
class LayerRun:
    """One layer of a run.

    batch_steps are steps that followed a forward in train mode, stored_steps those that followed forwards in eval
    alone and trained this layer, whole_eval_steps the last of these in a row that had all of the called part in
    eval. learns: the optimizer holds the layer, or its neighbours. still: it does not, though it holds others of
    the part, and nothing has changed them. modes are the steps from which on the layer was called in train or in
    eval, with gradients. silent_in_eval are the silent calls of a layer in train mode where the called part was in
    eval. lags are evaluations while the statistics lagged.
    """

    name: str
    momentum: float | None
    frozen: bool
    trains_affine: bool | None
    timeline: list[Point] = field(default_factory=list)
    calls: int = 0
    recomputed: int = 0
    updates: int = 0
    skipped: int = 0
    finite: bool = True
    rank_drift: float = 0.0
    silent_calls: int = 0
    silent_in_eval: int = 0
    batch_steps: int = 0
    stored_steps: int = 0
    whole_eval_steps: int = 0
    learns: bool = False
    still: bool = False
    modes: list[tuple[int, str]] = field(default_factory=list)
    rank_shift: float = 0.0
    rank_shift_error: float = 0.0
    lags: list[Lag] = field(default_factory=list)
    untracked: bool = False
    started_initial: bool = False
    fades: bool = True
    plain: bool = True
    shift: Tensor | None = None
    square: Tensor | None = None
    log_ratio: Tensor | None = None
    looks: int = 0

    @property
    def drift(self) -> float:
        """Smoothed distance of the batches' means from the running mean, in running standard deviations."""
        return 0.0 if self.shift is None else float(self.shift.square().mean().sqrt())

    @property
    def standard_error(self) -> float:
        """Of the drift, from the scatter of the batches."""
        return 0.0 if self.shift is None else float(self.squared_error().mean().sqrt())

    def squared_error(self) -> Tensor:
        """Of the smoothed shift, per channel."""
        if self.shift is None or self.square is None:
            return torch.zeros(1)
        scatter = (self.square - self.shift.square()).clamp_min(0)
        return scatter * max(MEMORY / (2 - MEMORY), 1 / max(self.looks, 1))

    @property
    def lagging(self) -> bool:
        """Whether the batches lie, over enough looks and beyond chance, where the running mean is not.

        Where the ranks see different data, the distance is theirs and not that of the weights.
        """
        sure = self.drift > max(DRIFT, SURE * self.standard_error)
        return self.looks >= LOOKS and self.finite and sure and not self.ranks_apart

    @property
    def ranks_apart(self) -> bool:
        """Whether the ranks' batches lie apart beyond chance."""
        return self.looks >= LOOKS and self.rank_shift > max(DRIFT, SURE * self.rank_shift_error)

    @property
    def variance_log_ratio(self) -> float:
        """Smoothed mean log ratio of the batches' variances to the running one."""
        return 0.0 if self.log_ratio is None else float(self.log_ratio.abs().mean())

    def look(self, shift: Tensor, log_ratio: Tensor) -> None:
        """Take in one batch's distances per channel."""
        if not bool(torch.isfinite(shift).all() and torch.isfinite(log_ratio).all()):
            return
        self.looks += 1
        weight = max(MEMORY, 1 / self.looks)
        for name, value in (("shift", shift), ("square", shift.square()), ("log_ratio", log_ratio)):
            old = getattr(self, name)
            setattr(self, name, value if old is None else old + weight * (value - old))

    def end_step(self, step: int, tally: Tally) -> None:
        """Take in a step's calls."""
        mode = tally.mode
        if not mode:
            return
        if tally.batch:
            self.batch_steps += 1
            self.whole_eval_steps = 0
        elif tally.stored:
            self.stored_steps += 1
            self.whole_eval_steps = self.whole_eval_steps + 1 if tally.whole else 0
        if (not self.modes or self.modes[-1][1] != mode) and len(self.modes) < LONGEST:
            self.modes.append((step, mode))

    def note(self, point: Point) -> None:
        """Add a point; a long timeline is thinned, its ends kept."""
        self.timeline.append(point)
        if len(self.timeline) > LONGEST:
            self.timeline = self.timeline[::2] + ([point] if len(self.timeline) % 2 == 0 else [])


@dataclass
class RunEvidence:
    """The whole run so far."""

    layers: dict[str, LayerRun]
    steps: int = 0
    forwards: int = 0
    evaluations: int = 0
    forwards_a_step: float | None = None
    planned: int | None = None
    ranks: int = 1
    closed: bool = False


def gain(layer: _BatchNorm) -> float | None:
    """The weight of the newest batch in the running statistics; None for an estimator that has no such number."""
    count = 0 if layer.num_batches_tracked is None else int(layer.num_batches_tracked)
    momentum = next_momentum(layer)
    return 1 / max(count, 1) if momentum is None else float(momentum)


def window(weight: float | None, updates: int) -> float | None:
    """How many equally weighted batches are as good: 1 / (sum of squared weights) of an EMA, (2 - a) / a."""
    if weight is None or weight <= 0:
        return None
    return min((2 - weight) / weight, float(max(updates, 1)))
