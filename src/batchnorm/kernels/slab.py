"""The fused calls: statistics, the coupling's arithmetic and the output while a channel is in cache.

One call forward does everything a training step needs, the running statistics included; one call
backward does both passes. What passes between them is `saved`: rows of channel vectors in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import memory, native

COUPLINGS = ("batch", "second moment", "renorm", "population", "population total", "stored")
ACTIVATIONS = (None, "relu", "leaky_relu")
SCHEDULES = (None, "paper", "crossq")
GAINS = ("constant", "one over step", "debiased", "falling")
NONFINITE = ("skip", "propagate", "raise")
KEPT = (None, "pooled", "window", "mabn", "power", "unified")
# What a forward reports besides 0: the batch was skipped, groups of one value, a value that is not finite.
SKIPPED, TOO_FEW, NOT_FINITE = 1, 2, 4
# Where a backward finds the sign the activation saw.
RECOMPUTE, OUTPUT, INVERT = 0, 1, 2
ROWS = 12


def size(groups: int, channels: int) -> int:
    """How many numbers a forward leaves."""
    return (ROWS * groups + 2) * channels + 1


class Saved:
    """The rows of channel vectors one forward leaves, `(groups, C)` each, and what it met."""

    __slots__ = ("channels", "groups", "values")

    def __init__(self, groups: int, channels: int, values: Tensor | None = None) -> None:
        self.groups, self.channels = groups, channels
        self.values = torch.empty(size(groups, channels), dtype=torch.float64) if values is None else values

    def row(self, index: int) -> Tensor:
        """One row: count, its squares, mean, m2; mean, invstd, centre, share / count, ratio, offset; scale, shift."""
        size = self.groups * self.channels
        return self.values[index * size : (index + 1) * size].view(self.groups, self.channels)

    @property
    def met(self) -> tuple[Tensor, Tensor, Tensor]:
        """The population's mean and variance before this batch, and the number of this step."""
        start = ROWS * self.groups * self.channels
        mean, var = self.values[start:-1].view(2, self.channels).unbind(0)
        return mean, var, self.values[-1]


class Statistics(NamedTuple):
    """The running statistics a forward reads and, where it is told to, moves."""

    mean: Tensor
    var: Tensor
    tracked: Tensor | None
    skipped: Tensor | None


def addresses(statistics: Statistics | None) -> tuple[int, int, bool, int, int]:
    """Where the extension finds mean, var (and whether they are float64) and the counters; 0 for what is not there."""
    if statistics is None:
        return 0, 0, False, 0, 0
    mean, var, tracked, skipped = statistics
    counters = [0 if counter is None else counter.data_ptr() for counter in (tracked, skipped)]
    return mean.data_ptr(), var.data_ptr(), mean.dtype is torch.float64, counters[0], counters[1]


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[int, int, int]:
    """Where it finds weight and bias, and their dtype."""
    one = weight if weight is not None else bias
    return (
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if one is None else native.DTYPES[one.dtype],
    )


def spec(**choices: Any) -> Any:
    """What a layer's choices come to, made once; words are those of the tuples above."""
    for name, words in (
        ("coupling", COUPLINGS),
        ("activation", ACTIVATIONS),
        ("schedule", SCHEDULES),
        ("gain", GAINS),
        ("nonfinite", NONFINITE),
    ):
        if name in choices:
            choices[name] = words.index(choices[name])
    return native._native.Spec(**choices)


class Remembered(NamedTuple):
    """Averages over past batches: what they are, the buffers of one layer, and their addresses."""

    kept: Any
    buffers: dict[str, Tensor]
    addresses: Any


def kept(kind: str, **choices: Any) -> Any:
    """What a layer remembers of past batches, made once."""
    averages = native._native.Averages()
    averages.kind = KEPT.index(kind)
    for name, value in choices.items():
        setattr(averages, name, value)
    return averages


NOTHING = Remembered(native._native.Averages(), {}, native._native.Memory()) if native.built() else None


def forward(
    chosen: Any,
    x: Tensor,
    last: bool,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_weight: Tensor | None,
    statistics: Statistics | None,
    moves: bool,
    y: Tensor | None = None,
    remembered: Any = NOTHING,
) -> tuple[Tensor, Saved, int]:
    """Normalise x, which `native.arranged` has arranged; y, the channel vectors, and what happened.

    With y given only the channel vectors are filled in.
    """
    given = y is not None
    y = memory.like(x) if y is None else y
    saved = Saved(groups, x.shape[1])
    held, address, kind = native.spread(sample_weight, x)
    status = native._native.forward(
        chosen,
        native.data(x, last, groups),
        x.data_ptr(),
        0 if given else y.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        address,
        kind,
        *parameters(weight, bias),
        saved.values.data_ptr(),
        *addresses(statistics),
        moves,
        remembered.kept,
        remembered.addresses,
    )
    del held
    return y, saved, status


def backward(
    chosen: Any,
    g: Tensor,
    x: Tensor | None,
    y: Tensor | None,
    last: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    sample_weight: Tensor | None,
    saved: Saved,
    source: int,
    wants: tuple[bool, bool, bool],
    remembered: Any = NOTHING,
    moves: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and the residual; g has the strides of x (of y where x is found again)."""
    pattern: Any = x if x is not None else y
    dx = memory.like(pattern) if wants[0] or source == OUTPUT else None
    # The residual's gradient is written on the way; without an activation it is g itself, and this is not asked.
    dr = memory.like(pattern) if source == OUTPUT else None
    wide = pattern.dtype is torch.float64
    dtype = torch.float64 if wide else torch.float32
    dw = torch.empty(saved.channels, dtype=dtype) if wants[1] else None
    db = torch.empty(saved.channels, dtype=dtype) if wants[2] else None
    held, address, kind = native.spread(sample_weight, pattern)
    native._native.backward(
        chosen,
        native.data(pattern, last, saved.groups),
        g.data_ptr(),
        0 if x is None else x.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        0 if dr is None else dr.data_ptr(),
        address,
        kind,
        *parameters(weight, bias),
        saved.values.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        wide,
        source,
        remembered.kept,
        remembered.addresses,
        moves,
    )
    del held
    if weight is not None and dw is not None and dw.dtype is not weight.dtype:
        dw = dw.to(weight.dtype)
    if bias is not None and db is not None and db.dtype is not bias.dtype:
        db = db.to(bias.dtype)
    return dx, dw, db, dr
