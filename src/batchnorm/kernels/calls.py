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
# What a forward reports: all is well, the batch was skipped, groups of one value, a value that is not finite, no value.
DONE, SKIPPED, TOO_FEW, NOT_FINITE, EMPTY = 0, 1, 2, 4, 8
# Where a backward finds the sign the activation saw.
RECOMPUTE, OUTPUT, INVERT = 0, 1, 2
# What a backward does: all, the sums alone, or what follows them.
WHOLE, SUMS, REST = 0, 1, 2
ROWS = 13


def size(groups: int, channels: int) -> int:
    """How many numbers a forward leaves."""
    return ROWS * groups * channels


class Saved:
    """The rows of channel vectors one forward leaves, `(groups, C)` each."""

    __slots__ = ("_rows", "_table", "channels", "data", "groups", "values")

    def __init__(self, groups: int, channels: int, values: Tensor | None = None) -> None:
        self.groups, self.channels = groups, channels
        self._table: Tensor | None = None
        self._rows: dict[int, Tensor] = {}
        # What the extension was told about the tensor.
        self.data: Any = None
        if values is None:
            values = torch.empty(size(groups, channels), dtype=torch.float64, device="cpu")
        self.values = values

    def row(self, index: int) -> Tensor:
        """Of count, its squares, mean, m2; mean, invstd, centre, share / count; ratio, offset, scale, shift; follow."""
        found = self._rows.get(index)
        if found is None:
            if self._table is None:
                self._table = self.values.view(ROWS, self.groups, self.channels)
            found = self._rows[index] = self._table[index]
        return found

    def take(self, *moments: Tensor) -> None:
        """Count, its squares, mean and m2, from elsewhere."""
        for index, value in enumerate(moments):
            self.row(index).copy_(value)

    def flat(self, index: int) -> Tensor:
        """The same of a single group `(C,)`."""
        return self.values[index * self.channels : (index + 1) * self.channels]


class Statistics(NamedTuple):
    """The running statistics a forward reads and, where it is told to, moves."""

    mean: Tensor
    var: Tensor
    tracked: Tensor | None
    skipped: Tensor | None


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


def _wide(vectors: tuple[Tensor | None, ...], groups: int, channels: int, rows: int) -> tuple[list[Any], bool]:
    """Vectors as the extension reads them, and whether the first ones are a row per group."""
    by_group = groups > 1 and any(v is not None and v.dim() == 2 and v.shape[0] > 1 for v in vectors)
    kept: list[Any] = [*vectors]
    for i, v in enumerate(vectors):
        if v is None or (not by_group and v.dtype is torch.float64 and v.dim() == 1 and native.vector(v, channels)):
            continue
        v = v.to(torch.float64)
        kept[i] = (v.expand(groups, channels) if by_group and i < rows else v.reshape(-1).expand(channels)).contiguous()
    return kept, by_group


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
    lies, given, reduced, channels = native.lies, y is not None, saved is not None, x.shape[1]
    y = native.blank(x) if y is None else y
    saved = Saved(groups, channels) if saved is None else saved
    saved.data = native.data(x, last, groups)
    held, spread, kind = native.spread(sample_weight, x)
    lie, kept = _NONE, ()
    if vectors is not NONE:
        kept, by_group = _wide(vectors, groups, channels, 3)
        lie = native._native.Vectors(*map(lies, kept), by_group)
    mean, var, tracked, skipped = (None, None, None, None) if statistics is None else statistics
    affine = weight if weight is not None else bias
    status = native._native.forward(
        chosen, saved.data, lies(x), 0 if given else y.data_ptr(), lies(residual), spread, kind, lies(weight),
        lies(bias), 0 if affine is None else native.DTYPES[affine.dtype], saved.values.data_ptr(), lie, lies(mean),
        lies(var), mean is not None and mean.dtype is torch.float64, lies(tracked), lies(skipped), moves, reduced,
    )  # fmt: skip
    del held, kept
    return y, saved, status


def reduced(x: Tensor, last: bool, centred: bool, groups: int = 1, sample_weight: Tensor | None = None) -> Saved:
    """The moments of x, which `native.arranged` has arranged, for a forward that follows."""
    saved, (held, spread, kind) = Saved(groups, x.shape[1]), native.spread(sample_weight, x)
    told = native.data(x, last, groups), native.lies(x), spread, kind
    native._native.reduce(*told, saved.values.data_ptr(), centred)
    del held
    return saved


NONE = Vectors()
_NONE: Any = native._native.Vectors(0, 0, 0, 0, 0, False) if native.built() else None


class Pull(NamedTuple):
    """What takes the place of the derivative: weights of the means of g and of g * xhat, and what joins them.

    The default treats the statistics as constants.
    """

    own_u: Any = 0.0
    own_v: Any = 0.0
    base_u: Tensor | None = None
    base_v: Tensor | None = None
    # What the coupling found out and its memory asks for.
    kept: Any = None


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
    means: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Any, bool]:
    """Gradients of x, weight, bias and the residual, the sums of g and of g * xhat, and whether these are finite.

    g has the strides of x (of y where x is found again). pull stands in for the derivative. The sums are
    `(2, groups, C)`; with means four rows follow, those of `rule.Sums`, and only then it is looked what is finite.
    """
    lies: Any = native.lies
    pattern: Any = x if x is not None else y
    writes_dx, writes_sums = phase != SUMS, phase != REST
    dx = native.blank(pattern) if writes_dx and (wants[0] or source == OUTPUT) else None
    # The residual's gradient is written on the way; without an activation it is g itself, and this is not asked.
    dr = native.blank(pattern) if writes_dx and source == OUTPUT else None
    dtype = torch.float64 if pattern.dtype is torch.float64 else torch.float32
    dw = _vector(saved.channels, dtype, weight) if writes_sums and wants[1] else None
    db = _vector(saved.channels, dtype, bias) if writes_sums and wants[2] else None
    held, spread, kind = native.spread(sample_weight, pattern)
    if sums is None and (pull is not None or phase == SUMS):
        rows = 6 if means else 2
        sums = torch.empty(rows, saved.groups, saved.channels, dtype=torch.float64, device="cpu")
    told, kept = _DERIVATIVE, ()
    if pull is not None:
        kept, by_group = _wide((pull.base_u, pull.base_v), saved.groups, saved.channels, 2)
        told = True, pull.own_u, pull.own_v, lies(kept[0]), lies(kept[1]), by_group
    affine = weight if weight is not None else bias
    at = lies(sums)
    finite = native._native.backward(
        chosen, saved.data or native.data(pattern, last, saved.groups), lies(g), lies(x), lies(y), lies(dx), lies(dr),
        spread, kind, lies(weight), lies(bias), 0 if affine is None else native.DTYPES[affine.dtype],
        saved.values.data_ptr(), lies(dw), lies(db), dtype is torch.float64, source, *told, at, phase,
        at + 16 * saved.groups * saved.channels if means else 0,
    )  # fmt: skip
    del held, kept
    dw, db = (v if v is None or v.dtype is like.dtype else v.to(like.dtype) for v, like in ((dw, weight), (db, bias)))
    return dx, dw, db, dr, sums, finite


_DERIVATIVE = False, 0.0, 0.0, 0, 0, False


def _vector(channels: int, dtype: torch.dtype, like: Any) -> Tensor:
    """Room for the gradient of weight or bias."""
    if like is not None and like.dtype is dtype:
        return torch.empty_like(like)
    return torch.empty(channels, dtype=dtype, device="cpu")
