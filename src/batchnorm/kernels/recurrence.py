"""A first-order linear recurrence over rows, the one thing about a stream of samples that is no tensor operation."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels import native


def recurrence(x: Tensor, gain: Tensor, start: Tensor) -> Tensor:
    """`out[t] = gain[t] * out[t - 1] + x[t]` with `out[-1] = start`; a gain of 0 leaves out what was before.

    Args:
        x: `(T, C)`.
        gain: `(T, 1)` or `(T, C)`, of the dtype of x.
        start: `(C,)`, of the dtype of x.
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
