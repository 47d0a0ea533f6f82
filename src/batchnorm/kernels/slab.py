"""The fused calls: statistics, the coupling's arithmetic and the output while a channel is in cache.

One call forward does everything a training step needs, the running statistics included; one call
backward does both passes. What passes between them is `saved`: rows of channel vectors in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import native

COUPLINGS = ("batch", "second moment", "renorm", "population", "population total", "stored")
ACTIVATIONS = (None, "relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu")
SCHEDULES = (None, "paper", "crossq")
GAINS = ("constant", "one over step", "debiased", "falling")
NONFINITE = ("skip", "propagate", "raise")
KEPT = (None, "pooled", "window", "mabn", "power", "unified")
# What a forward reports besides 0: the batch was skipped, groups of one value, a value that is not finite.
SKIPPED, TOO_FEW, NOT_FINITE = 1, 2, 4
# Where a backward finds the sign the activation saw.
RECOMPUTE, OUTPUT, INVERT = 0, 1, 2
ROWS = 12


def address(t: Tensor) -> int:
    """Where a tensor's values lie at this moment, for one call: whatever owns the tensor may move them before the next.

    Raises:
        BatchNormError: a storage that has been freed under the tensor.
    """
    return t.data_ptr() or native.no_values(t)


def size(groups: int, channels: int) -> int:
    """How many numbers a forward leaves."""
    return (ROWS * groups + 2) * channels + 1


class Saved:
    """The rows of channel vectors one forward leaves, `(groups, C)` each, and what it met."""

    __slots__ = ("channels", "groups", "values")

    def __init__(self, groups: int, channels: int, values: Tensor | None = None) -> None:
        self.groups, self.channels = groups, channels
        self.values = (
            torch.empty(size(groups, channels), dtype=torch.float64, device="cpu") if values is None else values
        )

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
    counters = [0 if counter is None else address(counter) for counter in (tracked, skipped)]
    return address(mean), address(var), mean.dtype is torch.float64, counters[0], counters[1]


def parameters(weight: Tensor | None, bias: Tensor | None) -> tuple[int, int, int]:
    """Where it finds weight and bias, and their dtype."""
    one = weight if weight is not None else bias
    return (
        0 if weight is None else address(weight),
        0 if bias is None else address(bias),
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
    """Averages over past batches: what they are, and the buffers of one layer where the kernel looks for each."""

    kept: Any
    # Rings or vectors a, b and c, then two counters; None for what there is not.
    places: tuple[Tensor | None, ...]


def _memory(remembered: Remembered) -> Any:
    """Where the buffers lie at this moment: their storage may be another one at the next call."""
    if remembered is NOTHING:
        return _NO_MEMORY
    wide = any(v is not None and v.dtype is torch.float64 for v in remembered.places)
    return native._native.Memory(*(0 if v is None else address(v) for v in remembered.places), wide)


def kept(kind: str, **choices: Any) -> Any:
    """What a layer remembers of past batches, made once."""
    averages = native._native.Averages()
    averages.kind = KEPT.index(kind)
    for name, value in choices.items():
        setattr(averages, name, value)
    return averages


NOTHING: Any = Remembered(native._native.Averages(), ()) if native.built() else None
_NO_MEMORY: Any = native._native.Memory() if native.built() else None


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
    y = native.blank(x) if y is None else y
    saved = Saved(groups, x.shape[1])
    held, spread, kind = native.spread(sample_weight, x)
    status = native._native.forward(
        chosen,
        native.data(x, last, groups),
        address(x),
        0 if given else y.data_ptr(),
        0 if residual is None else address(residual),
        spread,
        kind,
        *parameters(weight, bias),
        saved.values.data_ptr(),
        *addresses(statistics),
        moves,
        remembered.kept,
        _memory(remembered),
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
    dx = native.blank(pattern) if wants[0] or source == OUTPUT else None
    # The residual's gradient is written on the way; without an activation it is g itself, and this is not asked.
    dr = native.blank(pattern) if source == OUTPUT else None
    wide = pattern.dtype is torch.float64
    dtype = torch.float64 if wide else torch.float32
    dw = torch.empty(saved.channels, dtype=dtype, device="cpu") if wants[1] else None
    db = torch.empty(saved.channels, dtype=dtype, device="cpu") if wants[2] else None
    held, spread, kind = native.spread(sample_weight, pattern)
    native._native.backward(
        chosen,
        native.data(pattern, last, saved.groups),
        address(g),
        0 if x is None else address(x),
        0 if y is None else address(y),
        0 if dx is None else dx.data_ptr(),
        0 if dr is None else dr.data_ptr(),
        spread,
        kind,
        *parameters(weight, bias),
        saved.values.data_ptr(),
        0 if dw is None else dw.data_ptr(),
        0 if db is None else db.data_ptr(),
        wide,
        source,
        remembered.kept,
        _memory(remembered),
        moves,
    )
    del held
    if weight is not None and dw is not None and dw.dtype is not weight.dtype:
        dw = dw.to(weight.dtype)
    if bias is not None and db is not None and db.dtype is not bias.dtype:
        db = db.to(bias.dtype)
    return dx, dw, db, dr
