"""The four passes in C++, on the CPU."""

from __future__ import annotations

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
    x, last = native.arranged(x.detach())
    held, address, kind = native.spread(weight, x)
    vectors = _vectors(x, None, mean, scale, shift)
    y = native.blank(x)
    told = native.data(x, last, len(mean))
    native._native.apply(told, x.data_ptr(), y.data_ptr(), address, kind, *(v.data_ptr() for v in vectors))
    del held
    return y


def backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.backward_reduce`."""
    if not native.plain(g):  # gradients batched by vmap
        return reference.backward_reduce(g, x, mean, invstd, weight)
    x, last = native.arranged(x.detach())
    vectors = _vectors(x, g, mean, invstd)
    g = native.like(g.detach(), x)
    held, address, kind = native.spread(weight, x)
    sums = torch.empty(2, *mean.shape, dtype=torch.float64, device="cpu")
    told = native.data(x, last, len(mean))
    addresses = [v.data_ptr() for v in (*vectors, *sums.unbind(0))]
    native._native.backward_reduce(told, g.data_ptr(), x.data_ptr(), address, kind, *addresses)
    del held
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
    x, last = native.arranged(x.detach())
    vectors = _vectors(x, g, centre, scale, u, v)
    g = native.like(g.detach(), x)
    held, address, kind = native.spread(weight, x)
    dx = native.blank(x)
    told = native.data(x, last, len(centre))
    native._native.backward_apply(
        told, g.data_ptr(), x.data_ptr(), dx.data_ptr(), address, kind, *(t.data_ptr() for t in vectors)
    )
    del held
    return dx


PASSES = Passes("native", native.serves, reduce, apply, backward_reduce, backward_apply)


def _vectors(x: Tensor, g: Tensor | None, *given: Tensor) -> list[Tensor]:
    """Channel vectors `(groups, C)` as the kernels read them, once x, g and they are known to go together.

    Raises:
        OperandError: sizes that do not, or a vector on another device.
    """
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
