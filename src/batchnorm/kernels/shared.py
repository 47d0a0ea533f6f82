"""The passes of plain batch normalization whose statistics are shared over processes, around the sums that cross.

A message is 2 C + 5 float64 values: two sums a channel, count and sum of squared weights, and 1, tag and its square.
The arithmetic is that of `layers/ranks.py` to the bit, since a rank without samples is served by that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import native
from batchnorm.kernels.slab import NOT_FINITE as NOT_FINITE
from batchnorm.kernels.slab import ROWS, Statistics, address, addresses, parameters
from batchnorm.kernels.slab import SKIPPED as SKIPPED
from batchnorm.kernels.slab import TOO_FEW as TOO_FEW

# What the sum of messages tells besides.
OUT_OF_STEP, FAR = 8, 16


class Arranged:
    """A batch in one of the layouts the kernels know, and what the extension is told about it."""

    __slots__ = ("data", "x")

    def __init__(self, x: Tensor) -> None:
        self.x, last = native.arranged(x)
        self.data = native.data(x, last, 1)

    @property
    def channels(self) -> int:
        """The size of axis 1."""
        return self.x.shape[1]


def message(batch: Arranged, shift: Tensor, tag: float) -> tuple[Tensor, Tensor]:
    """This rank's message about its batch, and its own moments as rows: count, its squares, mean, m2."""
    rows = torch.empty(4, batch.channels, dtype=torch.float64, device="cpu")
    sent = torch.empty(2 * batch.channels + 5, dtype=torch.float64, device="cpu")
    native._native.shared_message(
        batch.data, batch.x.data_ptr(), shift.data_ptr(), sent.data_ptr(), tag, rows.data_ptr()
    )
    return sent, rows


def moments(received: Tensor, tag: float, far: float, rounding: float, shift: Tensor) -> tuple[Tensor, int]:
    """The rows that a forward saves, moments filled in, from the sum of messages; moves the shift."""
    channels = shift.numel()
    saved = torch.empty(ROWS, channels, dtype=torch.float64, device="cpu")
    status = native._native.shared_moments(
        channels, received.data_ptr(), tag, far, rounding, shift.data_ptr(), saved.data_ptr()
    )
    return saved, status


def forward(
    spec: Any,
    batch: Arranged,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    statistics: Statistics | None,
    moves: bool,
) -> tuple[Tensor, int]:
    """The output, and what became of the running statistics; fills in the rest of saved."""
    y = native.blank(batch.x)
    status = native._native.shared_forward(
        spec,
        batch.data,
        batch.x.data_ptr(),
        y.data_ptr(),
        *parameters(weight, bias),
        saved.data_ptr(),
        *addresses(statistics),
        moves,
    )
    return y, status


def sums(
    batch: Arranged, g: Tensor, saved: Tensor, tag: float, wants: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """This rank's message of the backward, and its gradients of weight and bias; g has the strides of x."""
    sent = torch.empty(2 * batch.channels + 5, dtype=torch.float64, device="cpu")
    wide = batch.x.dtype is torch.float64
    dtype = torch.float64 if wide else torch.float32
    dw, db = (torch.empty(batch.channels, dtype=dtype, device="cpu") if wanted else None for wanted in wants)
    native._native.shared_sums(
        batch.data,
        g.data_ptr(),
        batch.x.data_ptr(),
        saved.data_ptr(),
        tag,
        sent.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        wide,
    )
    return sent, dw, db


def backward(
    batch: Arranged, g: Tensor, saved: Tensor, received: Tensor, tag: float, weight: Tensor | None, wanted: bool
) -> tuple[Tensor | None, int]:
    """The gradient of x from the sum of messages."""
    dx = native.blank(batch.x) if wanted else None
    status = native._native.shared_backward(
        batch.data,
        g.data_ptr(),
        batch.x.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        saved.data_ptr(),
        received.data_ptr(),
        tag,
        0 if weight is None else address(weight),
        0 if weight is None else native.DTYPES[weight.dtype],
    )
    return dx, status
