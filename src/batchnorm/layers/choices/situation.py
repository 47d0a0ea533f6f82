"""What choices are told: running statistics, their own memory, the number of the step, the batch where it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError
from batchnorm.kernels import wide_dtype
from batchnorm.layers.moments import Moments

Gain = float | Tensor
Schedule = Callable[[Tensor], Any]


@dataclass(frozen=True)
class State:
    """Running mean and variance, and whatever else the choices keep: `memory`, by buffer name."""

    mean: Tensor
    var: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class AfterReduction(Exception):
    """A choice asked for the batch before it was reduced; it is asked again afterwards."""


@dataclass(frozen=True)
class Now:
    """What a step knows besides data: its number (1 is the first), the layer's momentum and eps, its estimator.

    step is a tensor of the wide dtype, or a float where reading one costs no wait. batch and n, the moments of each
    group and the number of values in it, are known after the reduction; n before it too, where no weights decide.
    """

    step: Any
    momentum: Gain | None
    eps: float
    estimator: Any = None
    # What a coupling that looks back found out about the layer before.
    before: Mapping[str, Tensor] | None = None
    moments: Moments | None = None
    values: Any = None
    # Where groups move the statistics one by one: which update each one is.
    each: Tensor | None = None

    @property
    def update(self) -> Any:
        """The number of this update of the statistics; of each group's `(groups, 1)`, where they move one by one."""
        return self.step if self.each is None else self.each

    @property
    def batch(self) -> Moments:
        """The moments of each group `(groups, C)`."""
        if self.moments is None:
            raise AfterReduction
        return self.moments

    @property
    def n(self) -> Any:
        """How many values a group holds: a number, or `(groups, 1)`."""
        if self.moments is not None:
            return self.moments.count[..., :1]
        if self.values is None:
            raise AfterReduction
        return self.values

    def read(self, value: Tensor) -> Any:
        """A tensor of one value as the step is given: itself, or a float."""
        return value if isinstance(self.step, Tensor) else value.item()


def resolve(momentum: Any, step: Any) -> Gain | None:
    """The momentum of this step; a schedule gets the step's number as a float64 tensor, so that the gain is float64."""
    if not callable(momentum):
        if isinstance(momentum, str | list):
            raise BatchNormError(f"momentum must be a number, None or a function of the step; it was {told(momentum)}")
        return momentum
    number = not isinstance(step, Tensor)
    value = momentum(torch.tensor(step, dtype=torch.float64) if number else step.to(wide_dtype(step.device)))
    if not isinstance(value, float | int | Tensor):
        raise BatchNormError(f"momentum must return a number or a tensor; it returned {value!r}")
    return float(value) if number else value
