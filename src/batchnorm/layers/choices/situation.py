"""What choices are told: running statistics, their own memory, the number of the step, the batch where it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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

    def counter(self, name: str, now: Now) -> Any:
        """What the memory counts under this name, as the step is given: a tensor of one value, or a number."""
        # Read once, as often in a recomputed forward as in its first.
        read = self.__dict__.setdefault("_read", {})
        if name not in read:
            read[name] = now.read(self._raw(name, isinstance(now.step, Tensor)))
        return read[name]

    def others(self, name: str, seen: Any, scale: float = 1.0, log: bool = False) -> tuple[Tensor, Any]:
        """`scale` times the sum over the rows of a ring that stay when the next is pushed, and how many those are.

        With log it is that of their logarithms; seen is how many were pushed so far.
        """
        counts = isinstance(seen, Tensor)
        ring = self._raw(name, counts)
        size = ring.shape[0]
        if not counts:
            full = seen >= size
            left_out, kept = (seen % size, size - 1) if full else (-1, seen)
            return ring_sum(ring, size if full else seen, left_out, scale, log), kept
        rows = torch.arange(size, device=ring.device)
        stays = (rows < seen) & (rows != seen % size)
        shaped = stays.reshape(-1, *[1] * (ring.dim() - 1))
        return torch.where(shaped, ring.log() if log else ring, 0.0).sum(0) * scale, stays.sum().reshape(1)

    def all_of(self, name: str, now: Now, scale: float) -> Tensor:
        """`scale` times the sum over a ring."""
        ring = self._raw(name, isinstance(now.step, Tensor))
        return ring_sum(ring, ring.shape[0], -1, scale)

    def _raw(self, name: str, copies: bool) -> Tensor:
        return self.memory[name]


class Held(State):
    """The state that the buffers of a layer hold, each copied when it is first asked for: they move in place."""

    def __init__(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.__dict__["_held"], self.__dict__["_dtype"] = held, dtype

    def __getattr__(self, name: str) -> Any:
        # As cached_property, without its lock.
        if name == "memory":
            found: Any = _HeldMemory(self._held, self._dtype)
        elif name == "mean" or name == "var":
            found = copied(self._held[f"running_{name}"], self._dtype)
        else:
            raise AttributeError(name)
        self.__dict__[name] = found
        return found

    def _raw(self, name: str, copies: bool) -> Tensor:
        # What is read as a number, or summed, needs none.
        return self.memory[name] if copies else self._held[name]


class _HeldMemory(Mapping[str, Tensor]):
    """What the choices of a layer remember, each copied when it is first asked for."""

    def __init__(self, held: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._held, self._dtype = held, dtype
        self._copies: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._copies:
            self._copies[name] = copied(self._held[name], self._dtype)
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._held if name not in ("running_mean", "running_var"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._held


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
