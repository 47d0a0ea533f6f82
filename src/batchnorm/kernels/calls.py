"""The fused calls: statistics, the coupling's arithmetic and the output while a channel is in cache.

One call forward does everything a training step needs, the running statistics included; one call
backward does both passes. What passes between them is `saved`: rows of channel vectors in float64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import native

ACTIVATIONS = (None, "relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu")
NONFINITE = ("skip", "propagate", "raise")
# What a forward reports: all is well, the batch was skipped, groups of one value, a value that is not finite.
DONE, SKIPPED, TOO_FEW, NOT_FINITE = 0, 1, 2, 4
# Where a backward finds the sign the activation saw.
RECOMPUTE, OUTPUT, INVERT = 0, 1, 2
# What a backward does: all, the sums alone, or what follows them.
WHOLE, SUMS, REST = 0, 1, 2
ROWS = 13


def address(t: Tensor) -> int:
    """Where a tensor's values lie at this moment, for one call: whatever owns the tensor may move them before the next.

    Raises:
        BatchNormError: a storage that has been freed under the tensor.
    """
    return t.data_ptr() or native.no_values(t)


def size(groups: int, channels: int) -> int:
    """How many numbers a forward leaves."""
    return ROWS * groups * channels


class Saved:
    """The rows of channel vectors one forward leaves, `(groups, C)` each."""

    __slots__ = ("_rows", "_table", "channels", "groups", "values")

    def __init__(self, groups: int, channels: int, values: Tensor | None = None) -> None:
        self.groups, self.channels = groups, channels
        self._table: Tensor | None = None
        self._rows: dict[int, Tensor] = {}
        self.values = (
            torch.empty(size(groups, channels), dtype=torch.float64, device="cpu") if values is None else values
        )

    def row(self, index: int) -> Tensor:
        """Of count, its squares, mean, m2; mean, invstd, centre, share / count; ratio, offset, scale, shift; follow."""
        found = self._rows.get(index)
        if found is None:
            if self._table is None:
                self._table = self.values.view(ROWS, self.groups, self.channels)
            found = self._rows[index] = self._table[index]
        return found


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


class Vectors(NamedTuple):
    """Channel vectors, `(C,)` or `(groups, C)`: the population's, what joins the variance, what the batch joins."""

    pm: Tensor | None = None
    pv: Tensor | None = None
    rest: Tensor | None = None
    from_mean: Tensor | None = None
    from_var: Tensor | None = None


@lru_cache(maxsize=1024)
def spec(*numbers: Any) -> Any:
    """A step's numbers as the extension takes them: those of the plan and of the move, then eps and what is flags."""
    return native._native.Spec(*numbers)


def _spread(v: Tensor | None, groups: int, channels: int, by_group: bool) -> Tensor | None:
    if v is None or (v.dtype is torch.float64 and v.dim() == 1 and not by_group and native.vector(v, channels)):
        return v
    v = v.to(torch.float64)
    v = v.expand(groups, channels) if by_group else v.reshape(-1).expand(channels)
    return v.contiguous()


def _lie(v: Tensor | None) -> int:
    return 0 if v is None else v.data_ptr()


def forward(
    chosen: Any,
    x: Tensor,
    last: bool,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_weight: Tensor | None,
    vectors: Vectors,
    statistics: Statistics | None,
    moves: bool,
    y: Tensor | None = None,
    saved: Saved | None = None,
) -> tuple[Tensor, Saved, int]:
    """Normalise x, which `native.arranged` has arranged; y, the channel vectors, and what happened.

    With y given only the channel vectors are filled in; with saved given it holds the moments already.
    """
    given, reduced, channels = y is not None, saved is not None, x.shape[1]
    y = native.blank(x) if y is None else y
    saved = Saved(groups, channels) if saved is None else saved
    held, spread, kind = native.spread(sample_weight, x)
    lie, kept = _NONE, ()
    if vectors is not NONE:
        by_group = any(v is not None and v.dim() == 2 and len(v) > 1 for v in vectors)
        kept = [_spread(v, groups, channels, by_group and i < 3) for i, v in enumerate(vectors)]
        lie = native._native.Vectors(*map(_lie, kept), by_group)
    status = native._native.forward(
        chosen,
        native.data(x, last, groups),
        address(x) if x.numel() else 0,
        0 if given else y.data_ptr(),
        0 if residual is None else address(residual),
        spread,
        kind,
        *parameters(weight, bias),
        saved.values.data_ptr(),
        lie,
        *addresses(statistics),
        moves,
        reduced,
    )
    del held, kept
    return y, saved, status


NONE = Vectors()
_NONE: Any = native._native.Vectors(0, 0, 0, 0, 0, False) if native.built() else None


class Pull(NamedTuple):
    """What takes the derivative's place in a backward."""

    own_u: float
    own_v: float
    base_u: Tensor | None
    base_v: Tensor | None


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
    pull: Any = None,
    sums: Tensor | None = None,
    phase: int = WHOLE,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Any]:
    """Gradients of x, weight, bias and the residual, and the sums of g and of g * xhat `(2, groups, C)`.

    g has the strides of x (of y where x is found again). pull, as `Pull`, stands in for the derivative.
    """
    pattern: Any = x if x is not None else y
    dx = native.blank(pattern) if phase != SUMS and (wants[0] or source == OUTPUT) else None
    # The residual's gradient is written on the way; without an activation it is g itself, and this is not asked.
    dr = native.blank(pattern) if phase != SUMS and source == OUTPUT else None
    wide, channels = pattern.dtype is torch.float64, saved.channels
    dtype = torch.float64 if wide else torch.float32
    dw = torch.empty(channels, dtype=dtype, device="cpu") if wants[1] and phase != REST else None
    db = torch.empty(channels, dtype=dtype, device="cpu") if wants[2] and phase != REST else None
    held, spread, kind = native.spread(sample_weight, pattern)
    if sums is None and (pull is not None or phase == SUMS):
        sums = torch.empty(2, saved.groups, channels, dtype=torch.float64, device="cpu")
    told, kept, by_group = (False, 0.0, 0.0), (), False
    bases = (0, 0)
    if pull is not None:
        given = pull.base_u, pull.base_v
        by_group = any(v is not None and v.dim() == 2 and len(v) > 1 for v in given)
        kept = [_spread(v, saved.groups, channels, by_group) for v in given]
        bases = _lie(kept[0]), _lie(kept[1])
        told = (True, pull.own_u, pull.own_v)
    native._native.backward(
        chosen,
        native.data(pattern, last, saved.groups),
        address(g) if g.numel() else 0,
        0 if x is None or not x.numel() else address(x),
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
        *told,
        *bases,
        by_group,
        0 if sums is None else sums.data_ptr(),
        phase,
    )
    del held, kept
    if weight is not None and dw is not None and dw.dtype is not weight.dtype:
        dw = dw.to(weight.dtype)
    if bias is not None and db is not None and db.dtype is not bias.dtype:
        db = db.to(bias.dtype)
    return dx, dw, db, dr, sums
