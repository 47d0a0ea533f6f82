"""What goes over rows of channel vectors: a linear recurrence, which is no tensor operation, and the sum of a ring."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels import native
from batchnorm.kernels.shapes import wide_dtype


def recurrence(x: Tensor, gain: Tensor, start: Tensor) -> Tensor:
    """`out[t] = gain[t] * out[t - 1] + x[t]` with `out[-1] = start`; a gain of 0 leaves out what was before.

    x is `(T, C)`, gain `(T, 1)` or `(T, C)` and start `(C,)`, of one dtype.
    """
    if x.dtype is torch.float64 and native.serves(x) and native.plain(gain) and native.plain(start):
        x, gain, start = x.contiguous(), gain.contiguous(), start.contiguous()
        out = torch.empty_like(x)
        rows, channels = x.shape
        addresses = (x.data_ptr(), gain.data_ptr(), gain.shape[1] == channels, start.data_ptr(), out.data_ptr())
        native._native.recurrence(rows, channels, *addresses)
        return out
    states: list[Tensor] = []
    forgets = gain == 0
    for t in range(len(x)):
        start = torch.where(forgets[t], 0.0, gain[t] * start) + x[t]
        states.append(start)
    return torch.stack(states)


def before(states: Tensor, start: Tensor) -> Tensor:
    """What each row met: the states one row later, `start` in front."""
    return torch.cat((start[None], states[:-1]))


def ring_sum(ring: Tensor, rows: int, left_out: int = -1, scale: float = 1.0, log: bool = False) -> Tensor:
    """`scale` times the sum, in the wide dtype, of the first rows of `(k, C)` but one, or of their logarithms."""
    if native.enabled() and native.unwatched() and native.vector(ring, ring.numel()) and ring.dtype in _WIDTHS:
        channels = ring.shape[1]
        out = torch.empty(channels, dtype=torch.float64, device="cpu")
        wide = ring.dtype is torch.float64
        native._native.ring_sum(ring.data_ptr(), wide, rows, channels, left_out, scale, log, out.data_ptr())
        return out
    kept = ring[:rows].to(wide_dtype(ring.device))
    kept = kept.log() if log else kept
    if left_out < 0:
        return kept.sum(0) * scale
    return (kept[:left_out].sum(0) + kept[left_out + 1 :].sum(0)) * scale


_WIDTHS = (torch.float32, torch.float64)
