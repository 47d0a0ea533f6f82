"""The tensors of one call: which they are, whether they may meet, and whether the native kernels may read them.

Kernels are given addresses and sizes, and torch's own `native_batch_norm` trusts its caller too. So whatever serves a
call, `require` has seen its tensors, or the stricter `native.affine` and `native.statistics`, which decline all else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError, OperandError
from batchnorm.kernels import native
from batchnorm.kernels.shapes import NARROW
from batchnorm.layers import asserting
from batchnorm.layers.activation import SMALLEST_WEIGHT
from batchnorm.layers.naming import describe

_NAMES = ("running_mean", "running_var", "weight", "bias")


def require(layer: Any, x: Tensor, residual: Tensor | None = None) -> None:
    """Refuse an input `(N, C, *)` or a residual that does not go with what the layer holds: channels, dtype, device."""
    if not (x.is_floating_point() or x.is_quantized):
        raise OperandError(f"input of {describe(layer)} must be floating point; it was {x.dtype}")
    channels, dtype, on_cpu = x.shape[1], x.dtype, x.is_cpu
    for name in _NAMES:
        updated = name not in ("weight", "bias")
        held = layer.stat(name) if updated else layer.affine_part(name)
        if updated and held is not None and held.requires_grad:
            raise OperandError(f"{name} of {describe(layer)} must not require a gradient: the layer updates it")
        # What is plainly right is seen at once; this runs in every small inference.
        if held is None or (on_cpu and held.is_cpu and held.dtype is dtype and held.numel() == channels):
            continue
        _require_one(layer, x, name, held)
    if residual is not None:
        require_residual(layer, x, residual)


def _require_one(layer: Any, x: Tensor, name: str, held: Tensor) -> None:
    if held.numel() != x.shape[1]:
        shape = tuple(x.movedim(1, layer.channel_axis).shape)
        raise OperandError(
            f"input must have {held.numel()} channels on axis {layer.channel_axis}, as many as {name} of "
            f"{describe(layer)}; it had {x.shape[1]}, in shape {shape}"
        )
    # An empty input has nothing to mix.
    if mixed(held, x) and x.numel() and not x.is_quantized:
        legal = "float64" if held.dtype is torch.float64 else "float32, bfloat16 or float16"
        raise OperandError(
            f"input must be {legal}, since {name} of {describe(layer)} is {held.dtype}; it was {x.dtype}"
        )
    if held.device != x.device:
        raise OperandError(f"input must be on {held.device}, as {name} of {describe(layer)} is; it was on {x.device}")


def mixed(held: Tensor, x: Tensor) -> bool:
    """Whether float32 meets float64, which is not mixed, as in torch; half precision is widened to what it meets."""
    return (held.dtype is torch.float64) is not (x.dtype is torch.float64) and held.dtype not in NARROW


def require_axis(layer: Any, x: Tensor) -> None:
    """Refuse an input that has no such axis for the channels."""
    if not -x.dim() <= layer.channel_axis < x.dim():
        raise BatchNormError(
            f"input must have an axis {layer.channel_axis} for its channels, as {describe(layer)} says; "
            f"its shape was {tuple(x.shape)}"
        )


def require_layout(layer: Any, x: Tensor) -> None:
    """Refuse a sparse input: its zeros are values too."""
    if str(x.layout).startswith("torch.sparse"):
        raise OperandError(f"input of {describe(layer)} must be dense; it was {x.layout}: call to_dense()")


def require_residual(layer: Any, x: Tensor, residual: Tensor) -> None:
    """Refuse a residual that does not broadcast against the output, or on another device."""
    sizes = zip(reversed(residual.shape), reversed(x.shape), strict=False)
    if any(1 not in (r, n) and r != n for r, n in sizes):
        legal = f"of the input's shape {tuple(x.shape)}, or broadcast against it"
        raise OperandError(f"residual of {describe(layer)} must be {legal}; it was {tuple(residual.shape)}")
    if residual.device != x.device:
        raise OperandError(f"residual of {describe(layer)} must be on {x.device}; it was on {residual.device}")


def require_unchanged(layer: Any, name: str, now: Tensor, size: torch.Size) -> None:
    """Refuse a backward that would read a tensor resized since the forward."""
    if now.shape != size:
        raise OperandError(
            f"{name} of {describe(layer)} must keep its shape between forward and backward; it was {tuple(size)} "
            f"and is {tuple(now.shape)}"
        )


def joins(layer: Any, residual: Tensor, x: Tensor, plain: Callable[[Tensor], bool] = native.plain) -> bool:
    """Whether a residual may be added by the kernel: once expanded, of x's shape, not wider than x, and plain to it."""
    if residual.shape != x.shape or residual.device != x.device:
        require_residual(layer, x, residual)
        if residual.dim() > x.dim() or any(
            r > n for r, n in zip(reversed(residual.shape), reversed(x.shape), strict=False)
        ):
            return False
    if layer.activation == "leaky_relu" and layer.negative_slope < 0:
        # The backward reads the sign of what was activated from the output, which here has none.
        return False
    return plain(residual) and torch.promote_types(residual.dtype, x.dtype) is x.dtype


def require_invertible(weight: Tensor, layer: Any) -> None:
    """The form that keeps its output divides by weight on its way back."""
    message = f"weight must be at least {SMALLEST_WEIGHT} in every channel with inplace=True, which divides by it"
    asserting.require((weight.detach().abs() >= SMALLEST_WEIGHT).all(), message, layer)
