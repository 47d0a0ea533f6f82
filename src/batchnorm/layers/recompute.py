"""Forwards that run again inside a backward (activation checkpointing): no second update, same statistics."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from batchnorm.layers.estimators import Now, State
from batchnorm.layers.moments import Moments


def recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing makes it."""
    if torch.compiler.is_compiling():
        return False
    # Private, and wrapped here once: the id of the autograd graph task that runs on this thread.
    return torch._C._current_graph_task_id() != -1


class ForwardRecord:
    """The statistics that recent forwards met, found again by the batch's moments.

    A layer may run several times between two backwards and backwards may run in any order, so
    the position says nothing; the recomputed batch has the moments of its first forward. The match is
    an argmin over tensors: nothing waits for a value. Copies and pickles start empty.
    """

    def __init__(self, length: int = 32) -> None:
        self._length = length
        self._entries: deque[tuple[Tensor, dict[str, Tensor], float]] = deque(maxlen=length)

    def remember(self, batch: Moments, state: State, now: Now) -> None:
        """Keep what this forward met; the state is a copy of the buffers already."""
        vectors = {"mean": state.mean, "var": state.var, "step": now.step.clone()}
        if now.momentum is not None:
            vectors["momentum"] = torch.as_tensor(now.momentum, dtype=batch.mean.dtype, device=batch.mean.device)
        vectors.update({f"memory {name}": value for name, value in state.memory.items()})
        self._entries.append((_key(batch), vectors, now.eps))

    def recall(self, batch: Moments) -> tuple[State, Now] | None:
        """What the remembered forward met whose batch moments are nearest."""
        key = _key(batch)
        # Newest first: of equal batches argmin takes the first, and a training loop asks for its last forward.
        entries = [e for e in reversed(self._entries) if e[0].shape == key.shape]
        if not entries:
            return None
        names = entries[0][1].keys()
        entries = [e for e in entries if e[1].keys() == names]
        nearest = (torch.stack([e[0] for e in entries]) - key).abs().sum(-1).argmin()[None]
        found = {name: torch.stack([e[1][name] for e in entries]).index_select(0, nearest)[0] for name in names}
        memory = {name.removeprefix("memory "): v for name, v in found.items() if name.startswith("memory ")}
        now = Now(found["step"], found.get("momentum"), entries[0][2])
        return State(found["mean"], found["var"], memory), now

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardRecord:
        return ForwardRecord(self._length)

    def __reduce__(self) -> tuple[type[ForwardRecord], tuple[int]]:
        return ForwardRecord, (self._length,)


def _key(batch: Moments) -> Tensor:
    # Not the mean alone: couplings that take off none have it at 0.
    return torch.cat((batch.mean, batch.m2))
