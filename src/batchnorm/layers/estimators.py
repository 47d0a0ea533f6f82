"""How the running statistics move: each estimator is a step on channel vectors, without side effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from batchnorm.errors import check
from batchnorm.layers.moments import Moments

Gain = float | Tensor


@dataclass(frozen=True)
class State:
    """Running mean and variance `(C,)`, and the number of values behind them `(1,)` where one is kept."""

    mean: Tensor
    var: Tensor
    count: Tensor | None = None


class Estimator(Protocol):
    """The choice "how do the running statistics move?"."""

    @property
    def momentum(self) -> float | None:
        """What a layer's `momentum` attribute starts with."""
        ...

    @property
    def keeps_count(self) -> bool:
        """Whether the layer keeps a `pooled_count` buffer for this estimator."""
        ...

    def gain(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> Gain:
        """The weight of the new batch in the new mean, at this step (1 is the first)."""
        ...

    def step(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> State:
        """The statistics after this batch."""
        ...


@dataclass(frozen=True)
class EMA:
    """An exponential moving average: `new = decay * old + (1 - decay) * batch`.

    Example:
        >>> import batchnorm
        >>> layer = batchnorm.BatchNorm1d(4, estimator=batchnorm.EMA(decay=0.99, debias=True))
        >>> round(layer.momentum, 6)
        0.01

    With debias the initial value has no weight at all: the gain at step t is (1 - d) / (1 - d^t),
    so the stored buffers are the bias-corrected average (Kingma and Ba 2015, section 3) and any
    stock BatchNorm can load them. The layer's `momentum` attribute, 1 - decay, is read at every
    call; None there means the cumulative average, as in torch.

    Raises:
        BatchNormError: decay outside [0, 1).
    """

    decay: float = 0.9
    debias: bool = False

    def __post_init__(self) -> None:
        check(0 <= self.decay < 1, "decay", "in [0, 1), the weight of the old value", self.decay)

    @property
    def momentum(self) -> float | None:
        """Torch's momentum, the weight of the new batch."""
        # 1 - 0.9 is 0.09999999999999998; torch's users write 0.1.
        return round(1 - self.decay, 15)

    @property
    def keeps_count(self) -> bool:
        """No: the step counter is enough."""
        return False

    def gain(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> Gain:
        """Momentum, corrected for the initial value where asked, or 1 / step for None."""
        if momentum is None:
            return 1.0 / step.to(batch.mean.dtype)
        if self.debias and momentum > 0:
            return momentum / (1.0 - (1.0 - momentum) ** step.to(batch.mean.dtype))
        return momentum

    def step(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> State:
        """Move mean and unbiased variance by the gain."""
        a = self.gain(state, batch, momentum, step)
        return State((1 - a) * state.mean + a * batch.mean, (1 - a) * state.var + a * batch.var(1), state.count)


@dataclass(frozen=True)
class Cumulative:
    """The plain average over batches, torch's `momentum=None`: equal batch weights, within-batch variance.

    Example:
        >>> import batchnorm
        >>> batchnorm.BatchNorm1d(4, estimator=batchnorm.Cumulative()).momentum is None
        True

    A number assigned to the layer's `momentum` makes it a moving average while it stays, as in torch.
    """

    @property
    def momentum(self) -> float | None:
        """None, torch's word for it."""
        return None

    @property
    def keeps_count(self) -> bool:
        """No: the step counter is enough."""
        return False

    def gain(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> Gain:
        """1 / step."""
        return EMA().gain(state, batch, momentum, step)

    def step(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> State:
        """Average mean and unbiased variance."""
        return EMA().step(state, batch, momentum, step)


@dataclass(frozen=True)
class Pooled:
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
    other values have no meaning here.
    """

    @property
    def momentum(self) -> float | None:
        """None: every value counts the same."""
        return None

    @property
    def keeps_count(self) -> bool:
        """Yes: the number of values pooled so far."""
        return True

    def gain(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> Gain:
        """The batch's share of all values seen."""
        if momentum == 0:
            return 0.0
        return batch.count / (_count(state) + batch.count)

    def step(self, state: State, batch: Moments, momentum: float | None, step: Tensor) -> State:
        """Merge the batch into what has been seen (Chan)."""
        if momentum == 0:
            return state
        seen = _count(state)
        old = Moments(seen.expand_as(state.mean), state.mean, state.var * (seen - 1).clamp_min(0))
        new = old.merge(batch)
        return State(new.mean, new.var(1), new.count[:1])


def _count(state: State) -> Tensor:
    return torch.zeros_like(state.mean[:1]) if state.count is None else state.count
