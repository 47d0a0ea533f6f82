"""What choices are told: running statistics, their own memory, the number of the step, the batch where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError
from batchnorm.kernels import wide_dtype
from batchnorm.kernels.recurrence import ring_sum
from batchnorm.layers.moments import Moments

Gain = float | Tensor
Schedule = Callable[[Tensor], Any]


@dataclass(frozen=True)
class State:
    """Running mean and variance, and whatever else the choices keep: `memory`, by buffer name."""

    mean: Tensor
    var: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    _read: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def counter(self, name: str, now: Now) -> Any:
        """What the memory counts under this name, as the step is given: a tensor of one value, or a number."""
        # Read once, as often in a recomputed forward as in its first.
        if name not in self._read:
            stays = isinstance(now.step, Tensor)
            self._read[name] = self.memory[name] if stays else self._lying(name).item()
        return self._read[name]

    def others(self, name: str, seen: Any, scale: float = 1.0, log: bool = False) -> tuple[Tensor, Any]:
        """`scale` times the sum over the rows of a ring that stay when the next is pushed, and how many those are.

        With log it is that of their logarithms; seen is how many were pushed so far.
        """
        if not isinstance(seen, Tensor):
            ring = self._lying(name)
            size = ring.shape[0]
            if seen < size:
                return ring_sum(ring, seen, -1, scale, log), seen
            return ring_sum(ring, size, seen % size, scale, log), size - 1
        ring = self.memory[name]
        rows = torch.arange(ring.shape[0], device=ring.device)
        stays = (rows < seen) & (rows != seen % ring.shape[0])
        shaped = stays.reshape(-1, *[1] * (ring.dim() - 1))
        return torch.where(shaped, ring.log() if log else ring, 0.0).sum(0) * scale, stays.sum().reshape(1)

    def all_of(self, name: str, now: Now, scale: float) -> Tensor:
        """`scale` times the sum over a ring."""
        ring = self.memory[name] if isinstance(now.step, Tensor) else self._lying(name)
        return ring_sum(ring, ring.shape[0], -1, scale)

    def pushed(self, count: str, now: Now, values: Mapping[str, Any]) -> dict[str, Any]:
        """What becomes of rings that each get a value in the place of the oldest, and of their common count."""
        seen = self.counter(count, now)
        if isinstance(seen, Tensor):
            new: dict[str, Any] = {name: replaced(self.memory[name], seen, value) for name, value in values.items()}
        else:
            new = {name: Slot(seen, value) for name, value in values.items()}
        new[count] = seen + 1
        return new

    def _lying(self, name: str) -> Tensor:
        """A tensor that is read or summed at once, which needs no copy."""
        return self.memory[name]


class Slot(NamedTuple):
    """The value that takes the place of a ring's oldest, where the number of those before it is known."""

    seen: int
    value: Tensor


def replaced(ring: Tensor, seen: Any, value: Any) -> Tensor:
    """The ring `(k, *)` with value in the place of the oldest, after `seen` others: a number, or a tensor `(1,)`."""
    if not isinstance(seen, Tensor):
        ring = ring.clone()
        ring[seen % len(ring)] = value
        return ring
    here = torch.arange(len(ring), device=ring.device) == seen % len(ring)
    value = value.to(ring.dtype) if isinstance(value, Tensor) else value
    return torch.where(here.reshape(-1, *[1] * (ring.dim() - 1)), value, ring)


class Held(State, Mapping[str, Tensor]):
    """The state that the buffers of a layer hold, each copied when it is first asked for: they move in place.

    As a mapping it is the memory.
    """

    memory = property(lambda self: self)  # pyright: ignore
    _held: dict[str, Tensor]
    _dtype: torch.dtype
    _copies: dict[str, Tensor]

    def __init__(self, held: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.__dict__.update(_held=held, _dtype=dtype, _read={}, _copies={})

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._copies:
            self._copies[name] = copied(self._held[name], self._dtype)
        return self._copies[name]

    def __getattr__(self, name: str) -> Tensor:
        if name not in ("mean", "var"):
            raise AttributeError(name)
        return self[f"running_{name}"]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._held if name not in ("running_mean", "running_var"))

    def __len__(self) -> int:
        return len(self._held) - 2

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def _lying(self, name: str) -> Tensor:
        return self._held[name]


def copied(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, since buffers move in place while a backward may still need their old values."""
    if not buffer.is_floating_point():
        dtype = buffer.dtype
    if torch.compiler.is_compiling():
        # A compiled backward recomputes cheap operations from the buffer, which has moved by then: a clone
        # gives wrong gradients (torch 2.13, no error). It keeps the result of a cumulative sum.
        return buffer[None].cumsum(0, dtype=dtype)[0]
    return buffer.clone() if buffer.dtype is dtype else buffer.to(dtype)


class AfterReduction(Exception):
    """A choice asked for the batch before it was reduced; it is asked again afterwards."""


class Now:
    """What a step knows besides data: its number (1 is the first), the layer's momentum and eps, its estimator.

    step is a tensor of the wide dtype, or a float where reading one costs no wait. batch and n, the moments of each
    group and the number of values in it, are known after the reduction; n before it too, where no weights decide.
    """

    step: Any
    momentum: Gain | None

    def __init__(
        self,
        step: Any,
        momentum: Any,
        eps: float,
        estimator: Any = None,
        before: Mapping[str, Tensor] | None = None,
        counter: Tensor | None = None,
        wide: torch.dtype | None = None,
    ) -> None:
        # With a counter of the steps done, step is read from it when it is asked for first; as a tensor of this dtype.
        if counter is None:
            self.step = step
        else:
            self._counter, self._wide = counter, wide
        # A schedule is called when it is asked for first, whatever else momentum should not be is refused then.
        if momentum is None or type(momentum) is float:
            self.momentum = momentum
        else:
            self._momentum = momentum
        self.eps, self.estimator = eps, estimator
        # What a coupling that looks back found out about the layer before.
        self.before = before
        # The moments of each group, or the number of values that a group is known to hold.
        self.moments: Moments | None = None
        self.values: Any = None
        # Where groups move the statistics one by one: which update each one is.
        self.each: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # As cached_property, without its lock.
        if name == "step":
            done, wide = self._counter, self._wide
            self.step = float(done.item() + 1) if wide is None else (done + 1).to(wide)
            return self.step
        if name == "momentum":
            self.momentum = resolve(self._momentum, self.step)
            return self.momentum
        raise AttributeError(name)

    def having(self, **changes: Any) -> Now:
        """The same step with something else known."""
        _ = self.step  # before its counter moves
        new = Now.__new__(Now)
        new.__dict__.update(self.__dict__, **changes)
        return new

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
        if self.values is not None:
            return self.values
        if self.moments is None:
            raise AfterReduction
        count = self.moments.count[..., :1]
        return self.read(count) if count.numel() == 1 else count

    def read(self, value: Tensor) -> Any:
        """A tensor of one value as the step is given: itself, or a number."""
        return value if isinstance(self.step, Tensor) else value.item()


def resolve(momentum: Any, step: Any) -> Gain | None:
    """The momentum of this step; a schedule gets the step's number as a float64 tensor, so that the gain is float64."""
    if not callable(momentum):
        if isinstance(momentum, (str, list)):
            raise BatchNormError(f"momentum must be a number, None or a function of the step; it was {told(momentum)}")
        return momentum
    number = not isinstance(step, Tensor)
    if not number:
        step = step.to(wide_dtype(step.device))
    elif not getattr(momentum, "takes_numbers", False):
        step = torch.tensor(step, dtype=torch.float64)
    value = momentum(step)
    if not isinstance(value, (float, int, Tensor)):
        raise BatchNormError(f"momentum must return a number or a tensor; it returned {value!r}")
    return float(value) if number else value
