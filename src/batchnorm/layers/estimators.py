"""How the running statistics move: each estimator is a step on channel vectors, without side effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from batchnorm.arguments import BATCHES, POSITIVE, a_flag, arguments, number, or_function, told
from batchnorm.errors import BatchNormError
from batchnorm.kernels import wide_dtype
from batchnorm.layers.moments import Moments
from batchnorm.layers.windows import pushed, rows_with

Gain = float | Tensor
CORRECTION = number("0 (biased) or 1 (unbiased)", lambda v: v in (0, 1))
Schedule = Callable[[Tensor], Any]
Correction = Literal[0, 1]


@dataclass(frozen=True)
class State:
    """Running mean and variance, and whatever else the choices keep: `memory`, by buffer name."""

    mean: Tensor
    var: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def times(weight: Gain, value: Tensor) -> Tensor:
    """The product, where a weight of 0 leaves the value out, be it NaN or infinite."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, 0.0, weight * value)
    return weight * value if weight != 0 else torch.zeros_like(value)


class Now(NamedTuple):
    """What a step knows besides data: its number (1 is the first), the layer's momentum and eps."""

    step: Tensor
    momentum: Gain | None
    eps: float
    # What a coupling that looks back found out about the layer before.
    before: Mapping[str, Tensor] | None = None


class Estimator:
    """The choice "how do the running statistics move?"."""

    # Whether the variance holds the spread of the batch means, so that moments mix as E[x] and E[x^2].
    total: bool = False

    @property
    def momentum(self) -> float | Schedule | None:
        """What a layer's `momentum` attribute starts with: a number, a function of the step, or None."""
        return None

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The buffers it needs beside mean and variance, as they start from these statistics."""
        return {}

    def gain(self, state: State, batch: Moments, now: Now) -> Gain:
        """The weight of the new batch in the new mean."""
        raise NotImplementedError

    def rest(self, state: State, batch: Moments, now: Now) -> State:
        """What the batch joins: the new mean is `(1 - gain) * rest.mean + gain * batch.mean`."""
        return state

    def step(self, state: State, batch: Moments, now: Now) -> State:
        """The statistics after this batch."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Average(Estimator):
    """Averages driven by the layer's momentum: a number, a schedule already called, or None for 1 / step.

    sigma averages sqrt(var + eps) and stores its square minus eps (the rule of Batch
    Renormalization and of Keras' renorm). total adds the spread of the batch means,
    a (1 - a) (mean_B - mean)^2, so that the average is of E[x^2] - E[x]^2. correction is 1 for the
    unbiased batch variance, torch's, and 0 for the biased one of Flax, Haiku and Keras.
    """

    sigma: bool = field(default=False, kw_only=True)
    total: bool = field(default=False, kw_only=True)
    correction: Correction = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.sigma and self.total:
            raise BatchNormError("give sigma or total, not both")

    def gain(self, state: State, batch: Moments, now: Now) -> Gain:
        """The momentum, or 1 / step for None."""
        return 1.0 / now.step.to(batch.mean.dtype) if now.momentum is None else now.momentum

    def step(self, state: State, batch: Moments, now: Now) -> State:
        """Move the mean and the variance by the gain."""
        a = self.gain(state, batch, now)
        mean = times(1 - a, state.mean) + times(a, batch.mean)
        var = batch.var(self.correction)
        if self.sigma:
            sigma = times(1 - a, (state.var + now.eps).sqrt()) + times(a, (var + now.eps).sqrt())
            return State(mean, (sigma.square() - now.eps).clamp_min(0), state.memory)
        var = times(1 - a, state.var) + times(a, var)
        if self.total:
            var = var + times(a * (1 - a), (batch.mean - state.mean).square())
        return State(mean, var, state.memory)


@arguments(
    decay=or_function(number("in [0, 1), the weight of the old value", lambda v: 0 <= v < 1)),
    debias=a_flag,
    sigma=a_flag,
    total=a_flag,
    correction=CORRECTION,
)
@dataclass(frozen=True)
class EMA(_Average):
    """An exponential moving average: `new = decay * old + (1 - decay) * batch`.

    Example:
        >>> import batchnorm
        >>> layer = batchnorm.BatchNorm1d(4, estimator=batchnorm.layers.EMA(decay=0.99, debias=True))
        >>> round(layer.momentum, 6)
        0.01

    With debias the initial value has no weight at all: the gain at step t is (1 - d) / (1 - d^t),
    so the stored buffers are the bias-corrected average (Kingma and Ba 2015, section 3) and any
    stock BatchNorm can load them. The layer's `momentum` attribute, 1 - decay, is read at every
    call; None there means the cumulative average, as in torch.

    Args:
        decay: the weight of the old value, a number or a function of the step (a float64 tensor, 1 at
            the first batch) that returns one. A debiased schedule keeps one buffer, `initial_weight`.
        debias: correct for the initial value.
        sigma: average sqrt(var + eps) instead of var; stored as its square minus eps.
        total: let the spread of the batch means into the variance.
        correction: 1 stores the unbiased batch variance as torch does, 0 the biased one.

    Raises:
        BatchNormError: decay outside [0, 1), another correction, sigma together with total.
    """

    decay: float | Schedule = 0.9
    debias: bool = False

    @property
    def momentum(self) -> float | Schedule | None:
        """Torch's momentum, the weight of the new batch."""
        if callable(self.decay):
            return Complement(self.decay)
        # 1 - 0.9 is 0.09999999999999998; torch's users write 0.1.
        return round(1 - self.decay, 15)

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The weight the initial value still has, where a schedule makes it no power of the decay."""
        if not (self.debias and callable(self.decay)):
            return {}
        return {"initial_weight": torch.where(trained, 0.0, 1.0).to(state.mean.dtype).reshape(1)}

    def gain(self, state: State, batch: Moments, now: Now) -> Gain:
        """Momentum, corrected for the initial value where asked, or 1 / step for None."""
        if now.momentum is None or not self.debias:
            return super().gain(state, batch, now)
        momentum = torch.as_tensor(now.momentum, dtype=batch.mean.dtype, device=batch.mean.device)
        if "initial_weight" in state.memory:
            left = state.memory["initial_weight"] * (1 - momentum)
        else:
            left = (1 - momentum) ** now.step.to(batch.mean.dtype)
        return torch.where(momentum > 0, momentum / torch.where(left < 1, 1 - left, 1.0), 0.0)

    def step(self, state: State, batch: Moments, now: Now) -> State:
        """Move mean and variance by the gain, and forget the initial value a little more."""
        new = super().step(state, batch, now)
        if "initial_weight" in state.memory and now.momentum is not None:
            left = state.memory["initial_weight"] * (1 - now.momentum)
            return replace(new, memory={**state.memory, "initial_weight": left})
        return new


@dataclass(frozen=True)
class Complement:
    """Momentum as a function of the step, from a decay that is one."""

    decay: Schedule

    def __call__(self, step: Tensor) -> Any:
        """1 - decay."""
        return 1 - self.decay(step)


@arguments(sigma=a_flag, total=a_flag, correction=CORRECTION)
@dataclass(frozen=True)
class Cumulative(_Average):
    """The plain average over batches, torch's `momentum=None`: equal batch weights, within-batch variance.

    Example:
        >>> import batchnorm
        >>> batchnorm.BatchNorm1d(4, estimator=batchnorm.layers.Cumulative()).momentum is None
        True

    A number assigned to the layer's `momentum` makes it a moving average while it stays, as in torch.
    """


@arguments(
    power=number("in (0, 1]", lambda v: 0 < v <= 1), scale=POSITIVE, sigma=a_flag, total=a_flag, correction=CORRECTION
)
@dataclass(frozen=True)
class Diminishing(_Average):
    """A gain that falls with the step, `min(1, scale / step**power)`.

    Example:
        >>> import batchnorm, torch
        >>> layer = batchnorm.BatchNorm1d(4, estimator=batchnorm.layers.Diminishing(power=0.5))
        >>> float(layer.momentum(torch.tensor(16)))
        0.25

    power 1 and scale 1 is the cumulative average; smaller powers forget the early batches. The sum of
    gains diverges, as convergence needs; the sum of their squares is finite for a power above 0.5.

    Raises:
        BatchNormError: power outside (0, 1], scale that is not positive.

    Source: Ma and Klabjan, "Diminishing Batch Normalization" (2017), the sequence alpha^(m).
    """

    power: float = 1.0
    scale: float = 1.0

    @property
    def momentum(self) -> float | Schedule | None:
        """The gain as a function of the step."""
        return Falling(self.power, self.scale)


@dataclass(frozen=True)
class Falling:
    """Momentum as a function of the step: `min(1, scale / step**power)`."""

    power: float
    scale: float

    def __call__(self, step: Tensor) -> Tensor:
        """The gain at this step."""
        return (self.scale / step.double() ** self.power).clamp_max(1.0)


@arguments(correction=CORRECTION)
@dataclass(frozen=True)
class Pooled(Estimator):
    """The exact moments of everything seen: count-weighted, with the variance between batches.

    Example:
        >>> import torch
        >>> from batchnorm import BatchNorm1d
        >>> from batchnorm.layers import Pooled
        >>> layer = BatchNorm1d(1, estimator=Pooled())
        >>> for batch in torch.tensor([[1.0], [2.0], [3.0], [4.0], [9.0]]).split([2, 3]):
        ...     _ = layer(batch)
        >>> layer.running_var  # the variance of all five values
        tensor([9.7000])

    The layer keeps a `pooled_count` buffer. A `momentum` of 0 assigned to the layer pauses it;
    other values have no meaning here. correction is 1 for the unbiased variance, 0 for the biased.
    """

    correction: Correction = 1
    total = True

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The number of values pooled; of statistics from elsewhere it is not known, so none."""
        # One element, not a scalar: compiled graphs lose in-place changes of 0-dim float64 CPU tensors.
        return {"pooled_count": torch.zeros(1, dtype=torch.float64, device=state.mean.device)}

    def gain(self, state: State, batch: Moments, now: Now) -> Gain:
        """The batch's share of all values seen."""
        total = state.memory["pooled_count"] + batch.count
        return 0.0 if _paused(now) else batch.count / torch.where(total > 0, total, 1.0)

    def step(self, state: State, batch: Moments, now: Now) -> State:
        """Merge the batch into what has been seen (Chan)."""
        if _paused(now):
            return state
        seen = state.memory["pooled_count"]
        old = Moments(seen.expand_as(state.mean), state.mean, times((seen - self.correction).clamp_min(0), state.var))
        new = old.merge(batch)
        return State(new.mean, new.var(self.correction), {**state.memory, "pooled_count": new.count[:1]})


@arguments(size=BATCHES, total=a_flag, correction=CORRECTION)
@dataclass(frozen=True)
class Window(Estimator):
    """The average over the last `size` batches; earlier batches have no weight.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(1, estimator=batchnorm.layers.Window(2))
        >>> for value in (100.0, 1.0, 3.0):
        ...     _ = layer(torch.full((4, 1), value))
        >>> layer.running_mean
        tensor([2.])

    Batches weigh the same and the variance is the mean of theirs; with total the values are pooled
    exactly: batches weigh what they hold and the spread of their means counts. The layer keeps the
    buffers `window_mean`, `window_var`, `window_count` and `window_seen`. Statistics trained
    elsewhere fill the window at the start, so they leave it batch by batch. correction as in `EMA`.

    Raises:
        BatchNormError: size below 1, another correction.
    """

    size: int = 10
    total: bool = False
    correction: Correction = field(default=1, kw_only=True)

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The window's batches, and how many came by."""
        k = self.size
        return {
            "window_mean": state.mean.expand(k, -1).clone(),
            "window_var": state.var.expand(k, -1).clone(),
            # A count of 0 in a filled row: not known, weighs what the new batch weighs.
            "window_count": torch.zeros(k, 1, dtype=state.mean.dtype, device=state.mean.device),
            "window_seen": torch.where(trained, k, 0).reshape(1),
        }

    def _weights(self, state: State, batch: Moments) -> tuple[Tensor, Tensor]:
        """Each row's weight with the batch in the oldest's place, and which row that is."""
        count, seen = state.memory["window_count"], state.memory["window_seen"]
        new = batch.count[..., :1]
        rows, used = rows_with(torch.where(count > 0, count, new), seen, new)
        weights = rows if self.total else torch.ones_like(rows)
        return torch.where(used, weights, 0.0), seen % self.size

    def gain(self, state: State, batch: Moments, now: Now) -> Gain:
        """The batch's share of the window it enters."""
        if _paused(now):
            return 0.0
        weights, slot = self._weights(state, batch)
        return weights.index_select(0, slot)[0] / weights.sum(0)

    def rest(self, state: State, batch: Moments, now: Now) -> State:
        """The window without the batch and without the oldest one."""
        weights, slot = self._weights(state, batch)
        here = torch.arange(self.size, device=slot.device)[:, None] == slot
        return self._average(torch.where(here, 0.0, weights), state.memory, state, 0)

    def step(self, state: State, batch: Moments, now: Now) -> State:
        """Put the batch in the place of the oldest and average."""
        if _paused(now):
            return state
        memory, seen = dict(state.memory), state.memory["window_seen"]
        weights, _ = self._weights(state, batch)
        var = batch.var(0 if self.total else self.correction)
        memory["window_mean"] = pushed(memory["window_mean"], seen, batch.mean)
        memory["window_var"] = pushed(memory["window_var"], seen, var)
        memory["window_count"] = pushed(memory["window_count"], seen, batch.count[:1])
        memory["window_seen"] = seen + 1
        return replace(self._average(weights, memory, state, self.correction), memory=memory)

    def _average(self, weights: Tensor, memory: Mapping[str, Tensor], empty: State, correction: Correction) -> State:
        total = weights.sum(0)
        safe = torch.where(total > 0, total, 1.0)
        mean = times(weights, memory["window_mean"]).sum(0) / safe
        spread = memory["window_var"]
        if self.total:
            spread = spread + (memory["window_mean"] - mean).square()
            safe = torch.where(total > correction, total - correction, 1.0)
        var = times(weights, spread).sum(0) / safe
        return State(torch.where(total > 0, mean, empty.mean), torch.where(total > 0, var, empty.var), empty.memory)


def _paused(now: Now) -> bool:
    return isinstance(now.momentum, float | int) and now.momentum == 0


def resolve(momentum: Any, step: Tensor) -> Gain | None:
    """The momentum of this step; a schedule gets the step's number as float64, so that the gain is float64."""
    if not callable(momentum):
        if isinstance(momentum, str | list):
            raise BatchNormError(f"momentum must be a number, None or a function of the step; it was {told(momentum)}")
        return momentum
    value = momentum(step.to(wide_dtype(step.device)))
    if not isinstance(value, float | int | Tensor):
        raise BatchNormError(f"momentum must return a number or a tensor; it returned {value!r}")
    return value
