"""Couplings that average over past batches, in the backward pass too: MABN, PowerNorm, Unified Normalization.

None takes off a mean: they normalise with second moments, `running_var` holds E[x^2] and
`running_mean` stays 0. What they subtract from the gradient is a running average, so it is
not the derivative of the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnorm.arguments import AT_LEAST_1, BATCHES, DECAY, STEPS, a_flag, arguments
from batchnorm.layers.couplings import Coupling, Plan, Returned
from batchnorm.layers.estimators import Estimator, Now, State, times
from batchnorm.layers.moments import Moments
from batchnorm.layers.windows import others, pushed


def _ring(state: State, rows: int, value: float = 0.0) -> Tensor:
    return torch.full((rows, state.mean.shape[-1]), value, dtype=state.mean.dtype, device=state.mean.device)


def _counter(state: State) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=state.mean.device)


def _correlation(back: Returned) -> Tensor:
    """Mean of g * xhat per group, with g = weight * ratio * dy the gradient at the normalised data."""
    return back.factor * back.sum_gx / _at_least_one(back.batch.count)


def _at_least_one(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, 1.0)


def _over_groups(values: Tensor, batch: Moments) -> Tensor:
    """The mean over groups, weighted by what they hold; nothing of a group that is empty."""
    return torch.where(batch.count > 0, values * batch.count, 0.0).sum(0) / _at_least_one(batch.count.sum(0))


class _SecondMoment(Coupling):
    """What the three share."""

    centres = False
    exact = False
    counts_batches = True


def _plan(var: Tensor, ratio: Tensor | None = None, grad_ratio: Tensor | None = None) -> Plan:
    zero = torch.zeros_like(var)
    return Plan(zero, var, 1.0, zero, ratio, None, False, grad_ratio)


@arguments(window=BATCHES, r_max=AT_LEAST_1, warmup=STEPS, correct_after=STEPS)
@dataclass(frozen=True)
class MABN(_SecondMoment):
    """Moving-average batch norm: windows over the second moment and over the gradient's correlation with y.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm2d(3, method="mabn")
        >>> _ = layer(torch.randn(2, 3, 4, 4))
        >>> sorted(name for name in layer.state_dict() if "window" in name)
        ['backward_window', 'backward_window_seen', 'forward_window', 'forward_window_seen']

    For 1 to 4 samples a batch. The batch's second moment moves `running_var`; the released code feeds
    it the window's mean instead. Give the preceding convolutions centred weights
    (`batchnorm.models.center_weights`), since no mean is subtracted.

    Args:
        window: how many batches the windows hold, this one included.
        r_max: the running second moment corrects the output by at most this factor.
        warmup: steps that use the batch alone.
        correct_after: steps before that correction begins.

    Raises:
        BatchNormError: window below 1, r_max below 1, a negative number of steps.

    Source: Yan et al., "Towards Stabilizing Batch Statistics in Backward Propagation of Batch
    Normalization" (2020), and its released code for the warm-up.
    """

    window: int = 16
    r_max: float = 5.0
    warmup: int = 100
    correct_after: int = 1000

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The last second moments and the last gradient correlations."""
        k = self.window - 1
        return {
            "forward_window": _ring(state, k),
            "forward_window_seen": _counter(state),
            "backward_window": _ring(state, k),
            "backward_window_seen": _counter(state),
        }

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The window's second moment; ratio is its root over the running one's."""
        square = batch.var(0)
        var = self._windowed(square, state.memory, "forward_window", now)
        r = ((var + now.eps) / (state.var + now.eps)).sqrt().clamp(1 / self.r_max, self.r_max)
        return _plan(var, torch.where(now.step > self.correct_after, r, 1.0))

    def _windowed(self, value: Tensor, memory: object, name: str, now: Now) -> Tensor:
        """The mean over the full window with value in it; value alone before that."""
        if self.window == 1:
            return value
        ring, seen = memory[name], memory[f"{name}_seen"]  # pyright: ignore[reportIndexIssue]
        full = (seen >= self.window - 1) & (now.step > self.warmup)
        return torch.where(full, (ring.sum(0) + value) / self.window, value)

    def step(self, batch: Moments, state: State, now: Now) -> dict[str, Tensor]:
        """Remember the batch's second moment."""
        return self._push(state, "forward_window", batch.var(0))

    def _push(self, state: State, name: str, value: Tensor) -> dict[str, Tensor]:
        if self.window == 1:
            return {}
        seen = state.memory[f"{name}_seen"]
        return {name: pushed(state.memory[name], seen, value), f"{name}_seen": seen + 1}

    def pull(self, back: Returned, state: State, now: Now) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The window's correlation in the place of the batch's."""
        psi = _correlation(back)
        windowed = self._windowed(psi, state.memory, "backward_window", now)
        new = self._push(state, "backward_window", _over_groups(psi, back.batch))
        return torch.zeros_like(psi), windowed * back.invstd.square(), new


@arguments(backward_decay=DECAY, warmup=STEPS)
@dataclass(frozen=True)
class PowerNorm(_SecondMoment):
    """Normalise with the running second moment of the past; a controller decorrelates the gradient from y.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(3, method="power")
        >>> layer(torch.randn(2, 3, 7)).shape
        torch.Size([2, 3, 7])

    Args:
        backward_decay: of the controller's memory.
        warmup: steps that normalise with the batch's second moment and take its exact gradient.

    Raises:
        BatchNormError: backward_decay outside [0, 1), a negative warmup.

    Source: Shen et al., "PowerNorm: Rethinking Batch Normalization in Transformers" (2020), algorithm 2.
    The released code divides the gradient by the batch's second moment; the paper's running one is
    used here, and the paper's scaling of groups of channels beforehand is left out.
    """

    backward_decay: float = 0.9
    warmup: int = 10_000

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The controller."""
        return {"backward_v": _ring(state, 1)}

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The batch's second moment, then the running one from before this batch."""
        return _plan(torch.where(now.step <= self.warmup, batch.var(0), state.var.expand_as(batch.mean)))

    def pull(self, back: Returned, state: State, now: Now) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The controller's estimate of the correlation; the batch's own during warm-up."""
        psi = _correlation(back)
        held = (1 - self.backward_decay) * state.memory["backward_v"]
        left = psi - times(held, back.batch.var(0) * back.invstd.square())
        new = state.memory["backward_v"] + _over_groups(left, back.batch)
        used = torch.where(now.step <= self.warmup, psi, held.expand_as(psi))
        return torch.zeros_like(psi), used * back.invstd.square(), {"backward_v": new}


@arguments(window=BATCHES, r_max=AT_LEAST_1, warmup=STEPS, backward_decay=DECAY, filter_outliers=a_flag)
@dataclass(frozen=True)
class UnifiedNorm(_SecondMoment):
    """The geometric mean of the last second moments; averaged gradient statistics; outliers left out.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(3, method="unified")
        >>> layer(torch.randn(2, 3, 7)).shape
        torch.Size([2, 3, 7])

    Args:
        window: how many batches the windows hold, this one included.
        r_max: limit of the factor by which the gradient follows the running second moment.
        warmup: steps that use the batch alone.
        backward_decay: of the moving average over the window of gradient correlations.
        filter_outliers: a batch whose window's arithmetic mean exceeds the geometric one by more
            than the recorded variance uses its own statistics and enters as the running one.

    Raises:
        BatchNormError: a value out of range.

    Source: Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers" (2022).
    The released code scales the gradient of weight by r as well, where here it is the derivative,
    and feeds `running_var` the window's mean, where here it is the batch's second moment.
    """

    window: int = 4
    r_max: float = 5.0
    warmup: int = 4000
    backward_decay: float = 0.9
    filter_outliers: bool = False

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """Both windows and the average over the second."""
        return {
            "forward_window": _ring(state, self.window),
            "forward_window_seen": _counter(state),
            "backward_window": _ring(state, self.window),
            "backward_window_seen": _counter(state),
            "backward_average": _ring(state, 1),
        }

    def _active(self, seen: Tensor, now: Now) -> Tensor:
        return (seen >= self.window - 1) & (now.step > self.warmup)

    def _outlier(self, square: Tensor, state: State, now: Now) -> Tensor:
        """Whether the window with this second moment has an outlier in any channel."""
        ring, seen = state.memory["forward_window"], state.memory["forward_window_seen"]
        if not self.filter_outliers or self.window < 2:
            return torch.zeros(1, dtype=torch.bool, device=ring.device)
        new = pushed(ring, seen, square)
        gap = new.mean(0) - _geometric(new)
        return self._active(seen, now) & (gap > ring.sqrt().var() * self.window).any()

    def plan(self, batch: Moments, state: State, now: Now, estimator: Estimator) -> Plan:
        """The geometric mean of the window; the gradient alone is scaled by r."""
        square, seen = batch.var(0), state.memory["forward_window_seen"]
        pooled = batch.pool().var(0) if batch.mean.dim() == 2 else square
        active = self._active(seen, now) & ~self._outlier(pooled, state, now)
        rest, _ = others(state.memory["forward_window"].log(), seen)
        var = torch.where(active, ((rest + square.log()) / self.window).exp(), square)
        r = ((var + now.eps) / (state.var + now.eps)).sqrt().clamp(1 / self.r_max, self.r_max)
        return _plan(var, None, torch.where(active, r, 1.0))._replace(windowed=active)

    def step(self, batch: Moments, state: State, now: Now) -> dict[str, Tensor]:
        """Remember the batch's second moment, or the running one for an outlier."""
        seen, square = state.memory["forward_window_seen"], batch.var(0)
        entering = torch.where(self._outlier(square, state, now), state.var, square)
        return {
            "forward_window": pushed(state.memory["forward_window"], seen, entering),
            "forward_window_seen": seen + 1,
        }

    def pull(self, back: Returned, state: State, now: Now) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The average over the window's correlations; the batch's own while the window is not used."""
        psi = _correlation(back)
        ring, seen = state.memory["backward_window"], state.memory["backward_window_seen"]
        average = state.memory["backward_average"]
        pooled = _over_groups(psi, back.batch)
        # An outlier's forward used its own moment, so its backward does too, and no window learns of it.
        assert back.plan.windowed is not None
        own = ~back.plan.windowed
        outlier = self._active(seen, now) & own & (self.window > 1)
        active = self._active(seen, now) & ~outlier
        rest, _ = others(ring, seen)
        windowed = torch.where(active, (rest + psi) / self.window, psi)
        moved = self.backward_decay * average + (1 - self.backward_decay) * windowed
        used = torch.where(active, moved, psi)
        new = {
            "backward_window": torch.where(outlier, ring, pushed(ring, seen, pooled)),
            "backward_window_seen": torch.where(outlier, seen, seen + 1),
            "backward_average": torch.where(outlier, average, _over_groups(moved, back.batch)[None]),
        }
        return torch.zeros_like(psi), used * back.invstd.square(), new


def _geometric(ring: Tensor) -> Tensor:
    return ring.log().mean(0).exp()
