"""Which positions of the model's own input are padding: runs of one value at an end, of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.models.batches import tensors

SHARE = 0.05  # of all positions


def padded_positions(batch: Any) -> Tensor | None:
    """True where data are: `(N, L)` for sequences, `(N, H, W)` for images; None where nothing looks like padding."""
    x = next(tensors(batch), None)
    if x is None or x.dim() not in (2, 3, 4) or x.shape[0] < 2:
        return None
    if x.dim() == 2:
        # Tokens; rows of features are no sequence.
        return None if x.is_floating_point() else _sequence(x[:, None])
    if x.dim() == 3:
        found = [f for f in (_sequence(x), _sequence(x.transpose(1, 2))) if f is not None]
        return max(found, key=lambda valid: float((~valid).float().mean()), default=None)
    rows, columns = _sequence(x.flatten(1, 1).transpose(2, 3).flatten(1, 2)), _sequence(x.flatten(1, 2))
    if rows is None and columns is None:
        return None
    whole = torch.ones(x.shape[0], x.shape[2], x.shape[3], dtype=torch.bool, device=x.device)
    if rows is not None:
        whole &= rows[:, :, None]
    if columns is not None:
        whole &= columns[:, None, :]
    return whole


def _sequence(x: Tensor) -> Tensor | None:
    """`(N, C, L)`: the valid positions, where runs of one value end or begin samples, and not all alike."""
    if x.shape[2] < 3:
        return None
    right, left = _run(x), _run(x.flip(2))
    valid = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
    position = torch.arange(x.shape[2], device=x.device)
    for run, from_end in ((right, True), (left, False)):
        if not bool((run != run[0]).any()):
            continue
        valid &= position < x.shape[2] - run[:, None] if from_end else position >= run[:, None]
    return valid if float((~valid).float().mean()) > SHARE and bool(valid.any(1).any()) else None


def _run(x: Tensor) -> Tensor:
    """How many positions at the end repeat the last one in every channel, all channels of one value; 0 for one."""
    last = x[:, :, -1:]
    flat = (last == last[:, :1]).all(1, keepdim=True)
    same = ((x == last) & flat).all(1)
    run = same.flip(1).long().cumprod(1).sum(1)
    return torch.where(run > 1, run, 0)


def at_layer(valid: Tensor, x: Tensor) -> Tensor | None:
    """The same positions in a layer's input `(N, C, *)`, as weights `(N, 1, *)`; None where they do not fit."""
    if x.dim() != valid.dim() + 1 or x.shape[0] != valid.shape[0]:
        return None
    return functional.interpolate(valid[:, None].float(), size=tuple(x.shape[2:]), mode="nearest")
