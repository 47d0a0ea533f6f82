"""The four passes in C++, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import calls, native, reference
from batchnorm.kernels.registry import Passes
from batchnorm.kernels.shapes import RawMoments


def reduce(x: Tensor, weight: Tensor | None = None, groups: int = 1, centred: bool = True) -> RawMoments:
    """As `reference.reduce`."""
    saved = calls.reduced(*native.arranged(x.detach()), centred, groups, weight)
    return RawMoments(*(saved.row(i) for i in range(4)))


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """As `reference.apply`."""
    return _run(native._native.apply, x, None, weight, (mean, scale, shift))


def backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.backward_reduce`."""
    if not native.plain(g):  # gradients batched by vmap
        return reference.backward_reduce(g, x, mean, invstd, weight)
    sums = torch.empty(2, *mean.shape, dtype=torch.float64, device="cpu")
    _run(native._native.backward_reduce, x, g, weight, (mean, invstd), sums)
    return sums[0], sums[1]


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
    if not native.plain(g):
        return reference.backward_apply(g, x, centre, scale, u, v, weight, may_leave_out)
    return _run(native._native.backward_apply, x, g, weight, (centre, scale, u, v))


PASSES = Passes("native", native.serves, reduce, apply, backward_reduce, backward_apply)


def _run(
    one: Any, x: Tensor, g: Tensor | None, weight: Tensor | None, given: tuple[Tensor, ...], sums: Tensor | None = None
) -> Tensor:
    """Let one pass read x, g and the channel vectors, and write the sums, or what is returned, in the strides of x."""
    x, last = native.arranged(x.detach())
    vectors = _vectors(x, g, *given)
    g = None if g is None else native.like(g.detach(), x)
    held, weights, kind = native.spread(weight, x)
    out = native.blank(x) if sums is None else None
    data = [t.data_ptr() for t in (g, x, out) if t is not None]
    rows = [t.data_ptr() for t in (*vectors, *(() if sums is None else sums.unbind(0)))]
    one(native.data(x, last, len(given[0])), *data, weights, kind, *rows)
    del held
    return x if out is None else out


def _vectors(x: Tensor, g: Tensor | None, *given: Tensor) -> list[Tensor]:
    """Channel vectors `(groups, C)` as the kernels read them, once x, g and they are known to go together."""
    first = given[0]
    if g is not None and g.shape != x.shape:
        raise OperandError(f"g must have the shape of x, {tuple(x.shape)}; it was {tuple(g.shape)}")
    if (
        first.dim() != 2
        or first.shape[1] != x.shape[1]
        or any(v.shape[-1:] not in (first.shape[1:], (1,)) for v in given)
    ):
        shapes = ", ".join(str(tuple(v.shape)) for v in given)
        raise OperandError(
            f"channel vectors must be (groups, {x.shape[1]}) for x of shape {tuple(x.shape)}; they were {shapes}"
        )
    if not all(v.is_cpu for v in given):
        raise OperandError(f"channel vectors must be on the CPU, as x is; one was on {[v.device for v in given]}")
    return [v.detach().expand_as(first).to(torch.float64).contiguous() for v in given]
