"""Forwards that run again inside a backward (activation checkpointing): no second update, same statistics."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from batchnorm.layers.estimators import State


def recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing makes it."""
    if torch.compiler.is_compiling():
        return False
    # Private, and wrapped here once: the id of the autograd graph task that runs on this thread.
    return torch._C._current_graph_task_id() != -1


class ForwardRecord:
    """The population that recent forwards normalised with, found again by the batch's mean.

    A layer may run several times between two backwards and backwards may run in any order, so
    the position says nothing; the recomputed batch has the mean of its first forward. The match is
    an argmin over tensors: nothing waits for a value. Copies and pickles start empty.
    """

    def __init__(self, length: int = 32) -> None:
        self._length = length
        self._entries: deque[tuple[Tensor, State, Tensor]] = deque(maxlen=length)

    def remember(self, batch_mean: Tensor, population: State, gain: Any) -> None:
        """Keep copies of what this forward used."""
        gain = torch.as_tensor(gain, dtype=batch_mean.dtype, device=batch_mean.device)
        copied = State(population.mean.clone(), population.var.clone())
        self._entries.append((batch_mean.clone(), copied, gain.clone()))

    def recall(self, batch_mean: Tensor) -> tuple[State, Tensor] | None:
        """The population and gain of the remembered forward whose batch mean is nearest."""
        entries = [e for e in self._entries if e[0].shape == batch_mean.shape]
        if not entries:
            return None
        means = torch.stack([mean for mean, _, _ in entries])
        nearest = (means - batch_mean).abs().sum(1).argmin()[None]

        def pick(rows: list[Tensor]) -> Tensor:
            return torch.stack(rows).index_select(0, nearest)[0]

        state = State(pick([s.mean for _, s, _ in entries]), pick([s.var for _, s, _ in entries]))
        return state, pick([gain for _, _, gain in entries])

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardRecord:
        return ForwardRecord(self._length)

    def __reduce__(self) -> tuple[type[ForwardRecord], tuple[int]]:
        return ForwardRecord, (self._length,)
