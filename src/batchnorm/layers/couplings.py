"""Which statistics normalise in training, and what flows back through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from batchnorm.layers.estimators import Gain, State
from batchnorm.layers.moments import Moments


class Plan(NamedTuple):
    """How to normalise one batch: `(x - mean) / sqrt(var + eps)`.

    share is the weight of the current batch in mean and var, which is what its gradient flows
    through; centre is the mean about which the variance's share was taken.
    """

    mean: Tensor
    var: Tensor
    share: Gain
    centre: Tensor


class Coupling(Protocol):
    """The choice "which statistics normalise in training?"."""

    @property
    def reads_population(self) -> bool:
        """Whether the running statistics enter the training forward."""
        ...

    def plan(self, batch: Moments, population: State, gain: Gain) -> Plan:
        """The normalising statistics, written in differentiable operations."""
        ...


@dataclass(frozen=True)
class BatchCoupling:
    """Normalise with the batch's own mean and biased variance (Ioffe and Szegedy 2015, algorithm 1)."""

    @property
    def reads_population(self) -> bool:
        """No."""
        return False

    def plan(self, batch: Moments, population: State, gain: Gain) -> Plan:
        """The batch's statistics, share 1."""
        return Plan(batch.mean, batch.var(0), 1.0, batch.mean)


@dataclass(frozen=True)
class PopulationCoupling:
    """Normalise with the population as updated by this batch: `gain * batch + (1 - gain) * running`.

    The gradient flows through the current batch's share alone. At gain 1 this is plain batch
    normalization; at small gains it is what Equinox calls mode="ema", which trains less stably
    because the gradient's own statistics are weighted by the gain too.
    """

    @property
    def reads_population(self) -> bool:
        """Yes."""
        return True

    def plan(self, batch: Moments, population: State, gain: Gain) -> Plan:
        """Mean and variance interpolated linearly; share is the gain."""
        mean = gain * batch.mean + (1 - gain) * population.mean
        var = gain * batch.var(0) + (1 - gain) * population.var
        return Plan(mean, var, gain, batch.mean)
