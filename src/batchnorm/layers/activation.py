"""Activation and residual as a part of the layer, and the form that keeps one tensor instead of two."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.errors import check

Activation = Literal["relu", "leaky_relu"]
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
    if activation == "relu":
        return functional.relu(y)
    return functional.leaky_relu(y, negative_slope) if activation == "leaky_relu" else y


def gated(g: Tensor, y: Tensor, activation: str, slope: float) -> Tensor:
    """The gradient behind the activation, by the output as it is stored, and for NaN as torch's backward does."""
    return torch.where(y > 0, g, g * slope) if activation == "leaky_relu" else torch.where(y <= 0, 0.0, g)
