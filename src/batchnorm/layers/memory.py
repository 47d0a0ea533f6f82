"""What a coupling's backward remembers: the buffers of its forward, found again, read and written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import native, wide_dtype
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.naming import describe
from batchnorm.layers.rule import Numbers, Pull, Sums


class Memory:
    """The memory of one forward's coupling, for its backward.

    By the time backward runs, the bank, the pause or the functional call of the forward may be over, and then it still
    belongs to the tensors of its forward. Or the layer's own tensors may be exchanged, by `.to()` or
    `load_state_dict(assign=True)`: then it belongs to the ones that took their place. The layer counts such exchanges.
    """

    __slots__ = ("_bank", "_coupling", "_exchanges", "_held", "_layer", "_moves", "_now", "_sizes")

    def __init__(self, layer: Any, now: Now, held: dict[str, Tensor] | None = None) -> None:
        self._layer, self._coupling, self._now, self._moves = layer, layer.recipe.coupling, now, not layer.paused
        self._bank, self._exchanges = layer.active_bank, layer.exchanges
        self._held = layer._held() if held is None else held
        self._sizes = [*map(Tensor.numel, self._held.values())]

    def pull(self, numbers: Numbers, sums: Sums | None = None) -> tuple[Pull | None, State]:
        """What takes the derivative's place, None before the sums where it takes them; and what the buffers hold."""
        layer = self._layer
        if layer.exchanges != self._exchanges:
            found = {name: layer._named(self._bank, name) for name in self._held}
            self._held = {name: held if found[name] is None else found[name] for name, held in self._held.items()}
            self._exchanges = layer.exchanges
        sizes = [*map(Tensor.numel, self._held.values())]
        if sizes != self._sizes:
            name, size, now = next(x for x in zip(self._held, self._sizes, sizes, strict=True) if x[1] != x[2])
            raise OperandError(
                f"{name} of {describe(layer)} must keep its {size} values between forward and backward; "
                f"it has {now}, in shape {tuple(self._held[name].shape)}"
            )
        state = layer._state(wide_dtype(self._held["running_mean"].device), self._held)
        return self._coupling.pull(state, self._now, numbers, sums), state

    def learn(self, state: State, numbers: Numbers, sums: Sums, pull: Any) -> None:
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
        if sums.finite is not None or (not isinstance(self._now.step, Tensor) and native.unwatched()):
            # Where reading it waits for nobody.
            if not ok:
                return
            ok = None
        self._layer._write_memory(self._coupling.learn(state, self._now, numbers, sums, pull), ok, self._held)

    def settle(self, numbers: Numbers, sums: Sums) -> Pull | None:
        """Both, once the sums are there."""
        pull, state = self.pull(numbers, sums)
        self.learn(state, numbers, sums, pull)
        return pull
