"""How the running statistics move: each estimator is a step on channel vectors, without side effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from batchnorm.arguments import BATCHES, POSITIVE, a_flag, arguments, number, or_function
from batchnorm.errors import BatchNormError
from batchnorm.kernels.shapes import or_one
from batchnorm.layers.choices.inherited import forget
from batchnorm.layers.choices.situation import Gain, Now, Schedule, State
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import Move, pick, single, times

CORRECTION = number("0 (biased) or 1 (unbiased)", lambda v: v in (0, 1))
Correction = Literal[0, 1]


class Estimator:
    """The choice "how do the running statistics move?"."""

    # Whether the variance holds the spread of the batch means, so that moments mix as E[x] and E[x^2].
    total: bool = False
    # Why no precisions, weights that are no counts, can be taken; None where they can.
    counts_values: bool = False
    # Whether gain and memory go by nothing but a momentum that stays, so that groups of one batch may move one by one.
    streams: bool = False
    # Whether the gain goes by the number of batches.
    counts_batches: bool = True
    # Whether `remember` asks for the mean and variance of before the batch.
    remembers_population: bool = True
    # What a layer's `momentum` attribute starts with: a number, a function of the step, or None.
    momentum: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forget(cls, _SAYS)

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The buffers it needs beside mean and variance, as they start from these statistics."""
        return {}

    def move(self, state: State, now: Now) -> Move:
        """The next running statistics, as numbers."""
        raise NotImplementedError

    def constant(self, momentum: Any) -> Move | None:
        """The move, where it is the same numbers in every step with this momentum; else None."""
        return None

    def gain(self, state: State, now: Now) -> Gain:
        """The weight of the new batch in the new mean."""
        return self.move(state, now).gain

    def rest(self, state: State, now: Now) -> State:
        """What the batch joins: the new mean is `(1 - gain) * rest.mean + gain * batch.mean`."""
        return state

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """What changes in its memory once this batch has entered; batch holds the pooled moments."""
        return {}


_SAYS = {
    "streams": (False, ("move", "gain", "remember")),
    "counts_batches": (True, ("move", "gain")),
    "remembers_population": (True, ("remember",)),
}


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

    streams = True
    remembers_population = False

    def gain(self, state: State, now: Now) -> Gain:
        """The momentum, or 1 / step for None."""
        return 1.0 / now.update if now.momentum is None else now.momentum

    def move(self, state: State, now: Now) -> Move:
        """Mean and variance move by the gain."""
        return self._by(self.gain(state, now))

    def _by(self, a: Gain) -> Move:
        return Move(a, 1 - a, a, a * (1 - a) if self.total else 0.0, self.sigma, self.correction)

    def constant(self, momentum: Any) -> Move | None:
        """That by the momentum, where it is a number and nothing else counts."""
        own = type(self).move is _Average.move and type(self).gain in (_Average.gain, EMA.gain)
        return self._by(momentum) if own and self.streams and type(momentum) in (float, int) else None


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

    remembers_population = False
    streams = property(lambda self: not (self.debias or callable(self.decay)))  # pyright: ignore
    counts_batches = property(lambda self: not self.streams)  # pyright: ignore

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

    def gain(self, state: State, now: Now) -> Gain:
        """Momentum, corrected for the initial value where asked, or 1 / step for None."""
        momentum = now.momentum
        if momentum is None or not self.debias:
            return super().gain(state, now)
        if "initial_weight" in state.memory:
            before = state.counter("initial_weight", now)
        else:
            before = (1 - momentum) ** (now.step - 1)
        # 1 - before * (1 - momentum), exactly the momentum at the first batch, however small that is.
        seen = 1 - before + before * momentum
        return pick(momentum > 0, momentum / pick(seen > 0, seen, 1.0), 0.0)

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Forget the initial value a little more."""
        if not self.debias or now.momentum is None or "initial_weight" not in state.memory:
            return {}
        return {"initial_weight": state.counter("initial_weight", now) * (1 - now.momentum)}


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
    takes_numbers: ClassVar[bool] = True  # a schedule of the user's gets a tensor, whatever the device

    def __call__(self, step: Any) -> Any:
        """The gain at this step."""
        gain = self.scale / (step.double() if isinstance(step, Tensor) else step) ** self.power
        return pick(gain > 1, 1.0, gain)


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
    counts_values = True
    remembers_population = False

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The number of values pooled; of statistics from elsewhere it is not known, so none."""
        # One element, not a scalar: compiled graphs lose in-place changes of 0-dim float64 CPU tensors.
        return {"pooled_count": torch.zeros(1, dtype=torch.float64, device=state.mean.device)}

    def move(self, state: State, now: Now) -> Move:
        """Merge the batch into what has been seen (Chan)."""
        if _paused(now):
            return Move()
        seen, n = state.counter("pooled_count", now), now.n
        return _joined(seen, pick(seen > self.correction, seen - self.correction, 0.0), n, self.correction)

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Count the values."""
        return {} if _paused(now) else {"pooled_count": state.counter("pooled_count", now) + now.n}


def _joined(seen: Any, seen_left: Any, n: Any, correction: int) -> Move:
    """A batch of n values joins `seen` others, whose variance was taken over `seen_left`; their means differ."""
    count = seen + n
    over, left = pick(count > 0, count, 1.0), pick(count > correction, count - correction, torch.nan)
    return Move(n / over, seen_left / left, n / left, seen * (n / over) / left, correction=0)


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
    remembers_population = False
    counts_values = property(lambda self: self.total)  # pyright: ignore

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

    def _past(self, state: State, now: Now) -> tuple[Any, Any, Any]:
        """What the others hold together, and their mean and biased spread: the window without the oldest."""
        memory = state.memory
        if not self.total:
            seen = state.counter("window_seen", now)
            if not isinstance(seen, Tensor):
                scale = 1 / max(min(seen, self.size - 1), 1)
                mean, count = state.others("window_mean", seen, scale)
                return count, mean, state.others("window_var", seen, scale)[0]
            (mean, held), (var, _) = state.others("window_mean", seen), state.others("window_var", seen)
            count = held.to(mean.dtype)
            over = pick(count > 0, count, 1.0)
            return count, mean / over, var / over
        means, variances = memory["window_mean"], memory["window_var"]
        # A count of 0 in a filled row is not known: it weighs what the new batch weighs.
        counts, seen = memory["window_count"], memory["window_seen"]
        n = single(now.n, means)
        rows = torch.arange(self.size, device=means.device)
        stays = ((rows < seen) & (rows != seen % self.size))[:, None, None]
        weights = torch.where(stays, torch.where(counts > 0, counts, n.reshape(1, -1))[..., None], 0.0)
        count = weights.sum(0)
        over = or_one(count)
        mean = times(weights, means[:, None]).sum(0) / over
        var = times(weights, variances[:, None] + (means[:, None] - mean).square()).sum(0) / over
        if n.dim() < 2:
            count, mean, var = count[0], mean[0], var[0]
        return now.read(count) if count.numel() == 1 else count, mean, var

    def move(self, state: State, now: Now) -> Move:
        """The batch joins the window in the place of the oldest."""
        if _paused(now):
            return Move()
        count, mean, var = self._past(state, now)
        if self.total:
            return _joined(count, count, now.n, self.correction)._replace(from_mean=mean, from_var=var)
        a = 1 / (count + 1)
        return Move(a, 1 - a, a, correction=self.correction, from_mean=mean, from_var=var)

    def rest(self, state: State, now: Now) -> State:
        """The window without the batch and without the oldest one."""
        _, mean, var = self._past(state, now)
        return State(mean, var, state.memory)

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """Put the batch in the place of the oldest."""
        if _paused(now):
            return {}
        n, correction = now.n, 0 if self.total else self.correction
        counted = isinstance(n, (float, int)) and n > correction and not batch.reliability
        var = batch.m2 / (n - correction) if counted else batch.var(correction)
        values = {"window_mean": batch.mean, "window_var": var, "window_count": n}
        return state.pushed("window_seen", now, values)


def _paused(now: Now) -> bool:
    return isinstance(now.momentum, (float, int)) and now.momentum == 0
