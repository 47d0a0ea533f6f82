"""Activation and residual as a part of the layer, and the form that keeps one tensor instead of two."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.errors import check

Activation = Literal["relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu"]
# The module of each; gelu is the exact one.
MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
}  # fmt: skip
# Those whose derivative the output shows; the others need what they were given.
_PIECEWISE = ("relu", "leaky_relu", "relu6")
# Below this |weight|, inverting the affine map would magnify the rounding of y a thousand times.
SMALLEST_WEIGHT = 1e-3


def check_activation(activation: Activation | None, negative_slope: float, inplace: bool) -> None:
    """The arguments of a fused activation."""
    check(not inplace or activation == "leaky_relu", "activation", "'leaky_relu' with inplace=True", repr(activation))
    check(not inplace or negative_slope > 0, "negative_slope", "positive with inplace=True", negative_slope)


def activate(y: Tensor, activation: str | None, negative_slope: float, residual: Tensor | None) -> Tensor:
    """`activation(y + residual)`; y is the layer's own, so nothing else can see it change."""
    if residual is not None:
        y = y + residual
    if activation == "leaky_relu":
        return functional.leaky_relu(y, negative_slope)
    return y if activation is None else getattr(functional, activation)(y)


def finished(layer: Any, y: Tensor, residual: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """What a layer does in torch once y is normalised: residual, activation, and zeros again where there is no data."""
    y = activate(y, layer.activation, layer.negative_slope, residual)
    return y if residual is None or sample_weight is None else torch.where(sample_weight != 0, y, 0)


def follows_residual(activation: str | None) -> bool:
    """Whether the gradient behind `activation(y + residual)` is known from the output that is kept."""
    return activation is None or activation in _PIECEWISE


def gated(g: Tensor, y: Tensor, activation: str | None, slope: float) -> Tensor:
    """The gradient behind the activation, by what it was given (or returned, where that tells); for NaN as torch's."""
    if activation == "leaky_relu":
        return torch.where(y > 0, g, g * slope)
    if activation == "relu":
        return torch.where(y <= 0, 0.0, g)
    if activation == "relu6":
        return torch.where((y > 0) & (y < 6), g, 0.0)
    if activation is None:
        return g
    return getattr(torch.ops.aten, f"{activation}_backward")(g, y)
