"""Couplings that average over past batches, in the backward pass too: MABN, PowerNorm, Unified Normalization.

None takes off a mean: they normalise with second moments, `running_var` holds E[x^2] and
`running_mean` stays 0. What they subtract from the gradient is a running average, so it is
not the derivative of the forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.arguments import AT_LEAST_1, BATCHES, DECAY, STEPS, a_flag, arguments
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.situation import Now, State, replaced
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import Numbers, Pull, Sums, Vectors, is_number, pick, times


def _ring(state: State, rows: int) -> Tensor:
    return torch.zeros((rows, state.mean.shape[-1]), dtype=state.mean.dtype, device=state.mean.device)


def _where(condition: Any, vector: Callable[[], Tensor]) -> Tensor | None:
    """The vector where the condition holds, else nothing, and then it is not made."""
    if isinstance(condition, Tensor):
        return torch.where(condition, vector(), 0.0)
    return vector() if condition else None


class _SecondMoment(Coupling):
    """What the three share."""

    centres = False
    exact = False
    counts_batches = True
    remembers_population = False


class _Windowed(_SecondMoment):
    """With windows over the past batches, of the forward and of the backward, once they are full and warm."""

    window: int
    warmup: int

    def _rings(self, state: State, rows: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in ("forward_window", "backward_window"):
            found[name] = _ring(state, rows)
            found[f"{name}_seen"] = torch.zeros(1, dtype=torch.long, device=state.mean.device)
        return found

    def _full(self, state: State, now: Now, name: str) -> Any:
        return (state.counter(f"{name}_seen", now) >= self.window - 1) & (now.step > self.warmup)

    def _push(self, state: State, now: Now, name: str, value: Any) -> dict[str, Any]:
        return state.pushed(f"{name}_seen", now, {name: value})


@arguments(window=BATCHES, r_max=AT_LEAST_1, warmup=STEPS, correct_after=STEPS)
@dataclass(frozen=True)
class MABN(_Windowed):
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

    remembers_population = False
    window: int = 16
    r_max: float = 5.0
    warmup: int = 100
    correct_after: int = 1000

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The last second moments and the last gradient correlations."""
        return self._rings(state, self.window - 1)

    def _window(self, state: State, now: Now, name: str) -> tuple[Any, Tensor | None]:
        """The share of a new value in its full window, and what the others add to it; all of it before that."""
        if self.window == 1:
            return 1.0, None
        full = self._full(state, now, name)
        return pick(full, 1 / self.window, 1.0), _where(full, lambda: state.all_of(name, now, 1 / self.window))

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The window's second moment; ratio is its root over the running one's."""
        share, rest = self._window(state, now, "forward_window")
        late = now.step > self.correct_after
        low, high = pick(late, 1 / self.r_max, 1.0), pick(late, float(self.r_max), 1.0)
        vectors = Vectors(pv=_where(late, lambda: state.var), rest=rest)
        return Numbers(0.0, share, 1.0, False, low, high), vectors

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Keep the batch's second moment."""
        return {} if self.window == 1 else self._push(state, now, "forward_window", batch.m2 / now.n)

    def pull(self, state: State, now: Now, numbers: Numbers, sums: Sums | None) -> Pull:
        """The window's correlation in the place of the batch's."""
        share, rest = self._window(state, now, "backward_window")
        return Pull(own_v=share, base_v=rest)

    def learn(self, state: State, now: Now, numbers: Numbers, sums: Sums, pull: Pull) -> dict[str, Any]:
        """Keep the batch's correlation."""
        return {} if self.window == 1 else self._push(state, now, "backward_window", sums.pooled(sums.mean_gx))


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

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The batch's second moment, then the running one from before this batch."""
        past = now.step > self.warmup
        return Numbers(0.0, pick(past, 0.0, 1.0), 1.0), Vectors(rest=_where(past, lambda: state.var))

    def pull(self, state: State, now: Now, numbers: Numbers, sums: Sums | None) -> Pull:
        """The controller's estimate of the correlation; the batch's own during warm-up."""
        past = now.step > self.warmup
        return Pull(own_v=pick(past, 0.0, 1.0), base_v=_where(past, lambda: self._held(state, now)))

    def learn(self, state: State, now: Now, numbers: Numbers, sums: Sums, pull: Pull) -> dict[str, Any]:
        """What the gradient still has in common with the output."""
        held = self._held(state, now) if isinstance(now.step, Tensor) or pull.base_v is None else pull.base_v
        left = sums.mean_gx - times(held, sums.y2)
        return {"backward_v": state.memory["backward_v"] + sums.pooled(left)}

    def _held(self, state: State, now: Now) -> Tensor:
        return state.all_of("backward_v", now, 1 - self.backward_decay)


@arguments(window=BATCHES, r_max=AT_LEAST_1, warmup=STEPS, backward_decay=DECAY, filter_outliers=a_flag)
@dataclass(frozen=True)
class UnifiedNorm(_Windowed):
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
    # An outlier is replaced by the running variance.
    remembers_population = property(lambda self: self.filter_outliers)  # pyright: ignore

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """Both windows and the average over the second."""
        return {**self._rings(state, self.window), "backward_average": _ring(state, 1)}

    def _outlier(self, square: Tensor, state: State, now: Now) -> Any:
        """Whether the window with this second moment has an outlier in any channel."""
        ring = state.memory["forward_window"]
        new = replaced(ring, state.counter("forward_window_seen", now), square)
        gap = new.mean(0) - new.log().mean(0).exp()
        return now.read((gap > ring.sqrt().var() * self.window).any()) & self._full(state, now, "forward_window")

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The geometric mean of the window; the gradient alone is scaled by r."""
        active = self._full(state, now, "forward_window")
        if self.filter_outliers and self.window > 1:
            active = active & (self._outlier(now.batch.pool().var(0), state, now) == 0)
        low, high = pick(active, 1 / self.r_max, 1.0), pick(active, float(self.r_max), 1.0)
        share = pick(active, 1 / self.window, 1.0)

        def rest() -> Tensor:
            seen = state.counter("forward_window_seen", now)
            return state.others("forward_window", seen, 1 / self.window, log=True)[0]

        # Its logarithm: of numbers, only where the window takes part, since exp(log E) is not E to the last bit.
        log = isinstance(active, Tensor) or bool(active)
        vectors = Vectors(pv=_where(active, lambda: state.var), rest=_where(active, rest))
        return Numbers(0.0, share, 1.0, log, low, high, quiet=True), vectors

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Keep the batch's second moment, or the running one for an outlier."""
        square = batch.m2 / now.n
        if self.filter_outliers and self.window > 1:
            square = pick(self._outlier(square, state, now), state.var, square)
        return self._push(state, now, "forward_window", square)

    def _backward(self, state: State, now: Now, numbers: Numbers) -> tuple[Any, Any]:
        """Whether the window of correlations takes part, and whether this batch was an outlier.

        An outlier's forward used its own moment, so its backward does too, and no window learns of it.
        """
        full = self._full(state, now, "backward_window")
        if self.window == 1:
            return full, False
        own = numbers.share == 1
        return full & (own == 0), full & own

    def pull(self, state: State, now: Now, numbers: Numbers, sums: Sums | None) -> Pull:
        """The average over the window's correlations; the batch's own while the window is not used."""
        active, _ = self._backward(state, now, numbers)
        new = (1 - self.backward_decay) / self.window

        def held() -> Tensor:
            rest, _ = state.others("backward_window", state.counter("backward_window_seen", now), new)
            return torch.add(rest, state.memory["backward_average"][0], alpha=self.backward_decay)

        return Pull(own_v=pick(active, new, 1.0), base_v=_where(active, held))

    def learn(self, state: State, now: Now, numbers: Numbers, sums: Sums, pull: Pull) -> dict[str, Any]:
        """Keep the batch's correlation, and move the average over the window of them."""
        active, outlier = self._backward(state, now, numbers)
        if is_number(outlier, True):
            return {}
        own = sums.mean_gx
        average = times(pull.own_v, own) if pull.base_v is None else times(pull.own_v, own) + pull.base_v
        if not is_number(active, True):
            held = state.memory["backward_average"]
            early = self.backward_decay * held + (1 - self.backward_decay) * own
            average = pick(active, average, early)
        new = self._push(state, now, "backward_window", sums.pooled(own))
        new["backward_average"] = sums.pooled(average)
        if is_number(outlier, False):
            return new
        return {name: pick(outlier, state.memory[name], value) for name, value in new.items()}
