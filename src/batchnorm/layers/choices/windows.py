"""Ring buffers of channel vectors: the last k batches, written in place, read without waiting for a value.

`seen` says how many values were pushed: a number, or a tensor `(1,)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slot(NamedTuple):
    """The value that takes the place of a ring's oldest, where the number of those before it is known."""

    seen: int
    value: Tensor


def pushed(memory: Mapping[str, Tensor], name: str, seen: Any, value: Any) -> Tensor | Slot:
    """What becomes of the ring of this name: one row, or all of it where seen is a tensor."""
    return replaced(memory[name], seen, value) if isinstance(seen, Tensor) else Slot(seen, value)


def replaced(ring: Tensor, seen: Any, value: Any) -> Tensor:
    """The ring `(k, *)` with value in the place of the oldest."""
    if not isinstance(seen, Tensor):
        ring = ring.clone()
        ring[seen % len(ring)] = value
        return ring
    here = torch.arange(len(ring), device=ring.device) == seen % len(ring)
    value = value.to(ring.dtype) if isinstance(value, Tensor) else value
    return torch.where(here.reshape(-1, *[1] * (ring.dim() - 1)), value, ring)
