"""What is known of a run: counts, and a few numbers a layer at every step that was looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.momentum import next_momentum

LONGEST = 512  # points of a layer's timeline; then every second one is dropped
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


@dataclass
class LayerRun:
    """One layer of a run."""

    name: str
    momentum: float | None
    frozen: bool
    trains_affine: bool | None
    initial_counter: int | None
    timeline: list[Point] = field(default_factory=list)
    calls: int = 0
    recomputed: int = 0
    updates: int = 0
    skipped: int = 0
    finite: bool = True
    rank_drift: float = 0.0
    silent_calls: int = 0
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
        if self.shift is None or self.square is None:
            return 0.0
        scatter = (self.square - self.shift.square()).clamp_min(0)
        weight = max(MEMORY / (2 - MEMORY), 1 / max(self.looks, 1))
        return float((scatter * weight).mean().sqrt())

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
