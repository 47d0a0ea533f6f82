"""The four passes on a device, as `kernels.reference` has them, and their launches."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from batchnorm.kernels import native, reference
from batchnorm.kernels.shapes import RawMoments
from batchnorm.kernels.triton import backward as _backward
from batchnorm.kernels.triton import forward as _forward
from batchnorm.kernels.triton import reduction
from batchnorm.kernels.triton.geometry import Cut, cut

# A graph reads what it was told where that lay, when the cache may have let it go.
_CAPTURED: list[Tensor] = []


def numbers_of(values: list[Any], device: torch.device) -> Tensor:
    """A float64 vector on the device; what is a tensor of one value already is not read."""
    found, parts = _constants(tuple(0.0 if isinstance(value, Tensor) else value for value in values), device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _CAPTURED.append(found)
    if not any(isinstance(value, Tensor) for value in values):
        return found
    mixed = [
        value.detach().to(device=device, dtype=torch.float64).reshape(()) if isinstance(value, Tensor) else part
        for value, part in zip(values, parts, strict=True)
    ]
    return torch.stack(mixed)


# A copy from the host, once: afterwards nothing is sent, so that a step can be captured in a graph.
@lru_cache(maxsize=4096)
def _constants(values: tuple[float, ...], device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.inference_mode(False):
        found = torch.tensor(values, dtype=torch.float64, device=device)
        return found, found.unbind(0)


def here(x: Tensor) -> AbstractContextManager[Any]:
    """Around launches, which go to the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def launched(at: Cut) -> dict[str, Any]:
    """What every kernel over data is compiled for."""
    constants = dict(at.constants)
    constants["ACC"] = tl.float64 if constants.pop("WIDER") else tl.float32
    return constants


def chunked(x: Tensor, at: Cut, rows: int) -> Tensor:
    """Room for what a reduction leaves of each chunk."""
    return x.new_empty((rows, at.groups, at.chunks, at.c), dtype=torch.float64)


def spread(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask or sample weights as `(N, *)` in memory."""
    if weight is None:
        return None
    return weight.expand(x.shape[0], 1, *x.shape[2:]).contiguous()


def reduced(x: Tensor, at: Cut, weight: Tensor | None, centred: bool) -> Tensor:
    """The moments of each chunk."""
    part = chunked(x, at, 4)
    reduction.reduce_kernel[at.reducing](
        x, weight, part, *at.sizes, at.chunks, at.span, CENTRED=centred, **launched(at)
    )
    return part


def reduce(x: Tensor, weight: Tensor | None = None, groups: int = 1, centred: bool = True) -> RawMoments:
    """As `reference.reduce`."""
    x, last = native.arranged(x.detach())
    at = cut(x, last, groups)
    held = spread(weight, x)
    with here(x):
        part = reduced(x, at, held, centred)
        rows = part.new_empty(4, groups, at.c)
        reduction.moments_kernel[at.channels](part, rows, groups, at.chunks, at.c, CENTRED=centred, BK=at.bk, BC=at.bc)
    return RawMoments(*rows.unbind(0))


def _vectors(*given: Tensor) -> list[Tensor]:
    return [v.detach().expand_as(given[0]).to(torch.float64).contiguous() for v in given]


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """As `reference.apply`."""
    x, last = native.arranged(x.detach())
    y = native.blank(x)
    with here(x):
        applied(x, y, None, spread(weight, x), cut(x, last, len(mean)), _vectors(mean, scale, shift), None, 0)
    return y


def applied(
    x: Tensor, y: Tensor, residual: Any, weight: Any, at: Cut, vectors: Any, numbers: Any, activation: int,
    statistics: Any = (None,) * 7, programs: int = 0, moves: bool = False, nonfinite: int = 0,
) -> None:  # fmt: skip
    """Fill y, and move the statistics (next, flags, mean, var, counters and outcome) where there are any."""
    _forward.apply_kernel[at.writing](
        x, residual, weight, y, *vectors, numbers, *at.sizes, at.written, *statistics, programs,
        ACT=activation, MOVES=moves, NONFINITE=nonfinite, **launched(at),
    )  # fmt: skip


def backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.backward_reduce`."""
    if not native.dense(g):  # gradients batched by vmap
        return reference.backward_reduce(g, x, mean, invstd, weight)
    x, last = native.arranged(x.detach())
    at = cut(x, last, len(mean))
    (middle,) = _vectors(mean)
    with here(x):
        part = summed(native.like(g.detach(), x), x, None, spread(weight, x), at, (middle, None, None), None, 0)
    sums = part.sum(2)
    return sums[0], sums[1] * invstd


def summed(g: Tensor, x: Tensor, y: Any, weight: Any, at: Cut, vectors: Any, numbers: Any, activation: int) -> Tensor:
    """The sums of a backward of each chunk."""
    part = chunked(x, at, 2)
    _backward.sums_kernel[at.reducing](
        g, x, y, weight, *vectors, numbers, part, *at.sizes, at.chunks, at.span, ACT=activation, **launched(at)
    )
    return part


def backward_apply(
    g: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    u: Tensor,
    v: Tensor,
    weight: Tensor | None = None,
    may_leave_out: bool = True,
) -> Tensor:
    """As `reference.backward_apply`; a v of 0 always leaves x out."""
    if not native.dense(g):
        return reference.backward_apply(g, x, centre, scale, u, v, weight, may_leave_out)
    x, last = native.arranged(x.detach())
    dx = native.blank(x)
    vectors = (None, None, None, None, *_vectors(centre, scale, u, v))
    at = cut(x, last, len(centre))
    with here(x):
        sent(native.like(g.detach(), x), x, None, spread(weight, x), dx, None, at, vectors, 0)
    return dx


def sent(g: Tensor, x: Tensor, y: Any, weight: Any, dx: Any, dr: Any, at: Cut, vectors: Any, activation: int) -> None:
    """Fill dx, and the gradient of the residual."""
    _backward.gradient_kernel[at.writing](
        g, x, y, weight, dx, dr, *vectors, *at.sizes, at.written, ACT=activation, **launched(at)
    )
