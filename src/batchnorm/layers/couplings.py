"""Which statistics normalise in training, and what flows back through them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from batchnorm.arguments import a_flag, arguments
from batchnorm.layers.estimators import Estimator, Gain, Now, State, times
from batchnorm.layers.moments import Moments

if TYPE_CHECKING:
    from batchnorm.layers.choices import Recipe


class Plan(NamedTuple):
    """How to normalise: `(x - mean) / sqrt(var + eps) * ratio + offset`, rows of groups by channels.

    share is the weight of the current batch in mean and var, which is what its gradient flows
    through; centre is the mean about which the variance's share was taken. ratio and offset are
    constants to the gradient. Where centred is False the mean is a constant too. grad_ratio scales the
    gradient and not the output (Unified Normalization).
    """

    mean: Tensor
    var: Tensor
    share: Gain
    centre: Tensor
    ratio: Tensor | None = None
    offset: Tensor | None = None
    centred: bool = True
    grad_ratio: Tensor | None = None
    # Whether a window took part (Unified Normalization): an outlier's forward, and its backward, use the batch alone.
    windowed: Tensor | None = None


class Returned(NamedTuple):
    """What a backward pass brings to the channels: sums of dy and of dy * xhat, and what stands beside them.

    factor is weight * ratio, so that dx = factor * invstd * dy - (u + v * (x - centre)).
    """

    plan: Plan
    batch: Moments
    invstd: Tensor
    factor: Tensor
    sum_g: Tensor
    sum_gx: Tensor


class Coupling:
    """The choice "which statistics normalise in training?"."""

    reads_population: bool = True
    # False: no mean is subtracted, running_var is the second moment and running_mean stays 0.
    centres: bool = True
    # False: the backward uses running averages and is not the derivative of the forward.
    exact: bool = True
    # Whether it needs the layer before, whose weights made the input.
    looks_back: bool = False
    # Whether it keeps windows or warm-ups in units of batches.
    counts_batches: bool = False
    # Whether one value per channel is enough to normalise a group.
    takes_one_value: bool = False

    def refuses(self, recipe: Recipe) -> str | None:
        """Why these choices cannot be combined, or None."""
        return None

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The buffers it needs beside mean and variance, as they start from these statistics."""
        return {}

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The normalising statistics of each group, written in differentiable operations."""
        raise NotImplementedError

    def step(self, batch: Moments, state: State, now: Now) -> dict[str, Tensor]:
        """What changes in its memory after this forward; batch holds the pooled moments."""
        return {}

    def pull(self, back: Returned, state: State, now: Now) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """U and v of dx, and what changes in its memory; only where `exact` is False."""
        raise NotImplementedError

    def finish(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """What is done to the layer's output, in training and at inference; weight `(N, 1, *)` is 0 at padding."""
        return y

    @property
    def finishes(self) -> str | None:
        """The name of what `finish` does, where no affine map per channel can do it."""
        return None


@dataclass(frozen=True)
class BatchCoupling(Coupling):
    """Normalise with the batch's own mean and biased variance (Ioffe and Szegedy 2015, algorithm 1)."""

    reads_population = False

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The batch's statistics, share 1."""
        return Plan(batch.mean, batch.var(0), 1.0, batch.mean)


@dataclass(frozen=True)
class SecondMoment(Coupling):
    """Normalise with the batch's root mean square, no mean subtracted."""

    reads_population = False
    centres = False

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """E[x^2] of the batch, share 1."""
        zero = torch.zeros_like(batch.mean)
        return Plan(zero, batch.var(0), 1.0, zero, centred=False)


@arguments(gradient=a_flag)
@dataclass(frozen=True)
class PopulationCoupling(Coupling):
    """Normalise with the population as updated by this batch: `gain * batch + (1 - gain) * running`.

    Example:
        >>> import batchnorm
        >>> from batchnorm.layers import PopulationCoupling
        >>> layer = batchnorm.BatchNorm1d(4, coupling=PopulationCoupling(), momentum=0.5)

    The gradient flows through the current batch's share alone. At gain 1 this is plain batch
    normalization; at small gains it is what Equinox calls mode="ema", which trains less stably
    because the gradient's own statistics are weighted by the gain too. With `EMA(total=True)` the
    moments mix as E[x] and E[x^2] (fast.ai's running batch norm), otherwise mean and variance do.

    Args:
        gradient: False treats the statistics as constants (Diminishing Batch Normalization).
    """

    gradient: bool = True

    def refuses(self, recipe: Recipe) -> str | None:
        """An average of standard deviations has no linear share of the batch."""
        if getattr(recipe.estimator, "sigma", False):
            return "a population coupling needs an estimator of the variance: use EMA(sigma=False)"
        return None

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """Mean and variance interpolated; share is the gain."""
        if batch.mean.dim() == 2:
            return by_group(self, batch, state, now, estimator)
        gain = estimator.gain(state, batch, now)
        rest = estimator.rest(state, batch, now)
        mean = times(gain, batch.mean) + times(1 - gain, rest.mean)
        var = times(gain, batch.var(0)) + times(1 - gain, rest.var)
        centre = batch.mean
        if estimator.total:
            var = var + times(gain * (1 - gain), (batch.mean - rest.mean).square())
            centre = mean
        if not self.gradient:
            return Plan(mean.detach(), var.detach(), 0.0, centre)
        return Plan(mean, var, gain, centre)


def by_group(coupling: Coupling, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
    """The plans of single groups, put together: for couplings whose arithmetic is not elementwise."""
    groups, rows = len(batch.mean), []
    for i in range(groups):
        here, then = state, now
        if state.mean.dim() == 2:  # a stream: each group is a step of its own
            here = replace(state, mean=state.mean[i], var=state.var[i])
            then = now._replace(step=(now.step - 1) * groups + i + 1)
        rows.append(coupling.plan(batch.row(i), here, then, estimator))
    shares = [torch.as_tensor(row.share, dtype=batch.mean.dtype, device=batch.mean.device) for row in rows]
    share = torch.stack([one.expand_as(row.mean) for one, row in zip(shares, rows, strict=True)])
    mean, var, centre = (torch.stack([getattr(row, name) for row in rows]) for name in ("mean", "var", "centre"))
    return Plan(mean, var, share, centre)
