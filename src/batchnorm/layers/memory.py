"""What a coupling's backward remembers: the buffers of its forward, found again, read and written."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import native, wide_dtype
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.naming import describe
from batchnorm.layers.rule import Numbers, Pull, Sums


class Opened(NamedTuple):
    """The buffers of a forward as its backward finds them, and copies of what they hold."""

    held: dict[str, Tensor]
    state: State


class Memory:
    """The memory of one forward's coupling, for its backward.

    By the time backward runs, the bank, the pause or the functional call of the forward may be over.
    """

    __slots__ = ("_buffers", "_coupling", "_layer", "_moves", "_now")

    def __init__(self, layer: Any, now: Now, held: dict[str, Tensor] | None = None) -> None:
        self._layer, self._coupling, self._now, self._moves = layer, layer.recipe.coupling, now, not layer.paused
        self._buffers = Buffers(layer, layer._held() if held is None else held)

    def open(self) -> Opened:
        """The buffers and what they hold, at this moment."""
        held = self._buffers.now()
        return Opened(held, self._layer._state(wide_dtype(held["running_mean"].device), held))

    def pull(self, at: Opened, numbers: Numbers, sums: Sums | None) -> Pull | None:
        """What takes the derivative's place; None before the sums where it takes them."""
        return self._coupling.pull(at.state, self._now, numbers, sums)

    def learn(self, at: Opened, numbers: Numbers, sums: Sums, pull: Any) -> None:
        """Move the memory, unless the gradient is not finite: an overflow of mixed precision must not stay for ever."""
        if not self._moves:
            return
        ok: Any = sums.finite
        if ok is None:
            # Of a stream, single samples are left out, and the coupling has done that; elsewhere one stops all. A sum
            # over channels is finite where all of them are.
            both = sums.sum_g + sums.sum_gx
            sequential = self._layer.recipe.extent.sequential
            ok = torch.isfinite(both.sum(-1)).any() if sequential else torch.isfinite(both.sum())
        if isinstance(sums.some, Tensor):
            ok = sums.some.any() & ok
        if not isinstance(self._now.step, Tensor) and native.unwatched():
            # Where reading it waits for nobody.
            if not ok:
                return
            ok = None
        new = self._coupling.learn(at.state, self._now, numbers, sums, pull)
        self._layer._write_memory(new, ok, at.held)


class Buffers:
    """The buffers of one layer that a forward worked with, for its backward to find again.

    Between the two a bank, a pause or `functional_call` may end, and then the backward still belongs to the tensors
    of its forward. Or the layer's own tensors may be exchanged, by `.to()` or `load_state_dict(assign=True)`: then it
    belongs to the ones that took their place. The layer counts such exchanges.
    """

    __slots__ = ("_bank", "_exchanges", "_held", "_layer", "_sizes")

    def __init__(self, layer: Any, held: dict[str, Tensor]) -> None:
        self._layer, self._bank, self._exchanges, self._held = layer, layer.active_bank, layer.exchanges, held
        self._sizes = [t.numel() for t in held.values()]

    def now(self) -> dict[str, Tensor]:
        """The tensors by name, as they are at this moment.

        Raises:
            OperandError: a buffer of another size than it had in the forward.
        """
        if self._layer.exchanges != self._exchanges:
            self._held = {name: self._successor(name, held) for name, held in self._held.items()}
            self._exchanges = self._layer.exchanges
        for (name, held), size in zip(self._held.items(), self._sizes, strict=True):
            if held.numel() != size:
                raise OperandError(
                    f"{name} of {describe(self._layer)} must keep its {size} values between forward and backward; "
                    f"it has {held.numel()}, in shape {tuple(held.shape)}"
                )
        return self._held

    def _successor(self, name: str, held: Tensor) -> Tensor:
        new = self._layer.stat_of(self._bank, name)
        return held if new is None else new
