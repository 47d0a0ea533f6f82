"""Ring buffers of channel vectors: the last k batches, written in place, read without waiting for a value."""

from __future__ import annotations

import torch
from torch import Tensor


def pushed(ring: Tensor, seen: Tensor, value: Tensor) -> Tensor:
    """The ring `(k, *)` with value in the place of the oldest, after `seen` `(1,)` pushes."""
    here = torch.arange(len(ring), device=ring.device) == seen % len(ring)
    return torch.where(here.reshape(-1, *[1] * (ring.dim() - 1)), value.to(ring.dtype), ring)


def rows_with(ring: Tensor, seen: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The ring as it will be with value pushed, and which rows `(k, 1)` hold something by then."""
    rows = torch.arange(len(ring), device=ring.device)[:, None]
    return pushed(ring, seen, value), rows <= seen


def others(ring: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the rows that stay when the next value is pushed, and how many those are `(1,)`."""
    rows = torch.arange(len(ring), device=ring.device)
    stays = (rows < seen) & (rows != seen % len(ring))
    shaped = stays.reshape(-1, *[1] * (ring.dim() - 1))
    return torch.where(shaped, ring, 0.0).sum(0), stays.sum().reshape(1)
