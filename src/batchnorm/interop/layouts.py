"""Axis orders of kernels in each framework, to torch's and back.

Torch holds a convolution as (out, in / groups, *k), a transposed one as (in, out / groups, *k) and
a linear map as (out, in). A layout is "FAMILY:KIND"; k stands for 1, 2 or 3 spatial axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def to_torch(layout: str, array: Any) -> Any:
    """The array with torch's axis order.

    Example:
        >>> import numpy as np
        >>> to_torch("last:conv", np.zeros((3, 5, 16, 32))).shape
        (32, 16, 3, 5)
    """
    k = array.ndim - 2
    if layout == "vector":
        return array.reshape(-1) if array.ndim else array
    if layout == "last:linear":
        return array.T
    if layout == "last:conv":  # (*k, in / groups, out)
        return array.transpose(k + 1, k, *range(k))
    if layout == "last:depthwise":  # (*k, channels, multiplier)
        moved = array.transpose(k, k + 1, *range(k))
        return moved.reshape(moved.shape[0] * moved.shape[1], 1, *moved.shape[2:])
    if layout == "gradient:conv_transpose":  # (*k, out, in): the kernel of the convolution it is the gradient of
        return array.transpose(k + 1, k, *range(k))
    if layout == "haiku:conv_transpose":  # (*k, out, in), not mirrored
        return np.flip(array.transpose(k + 1, k, *range(k)), tuple(range(2, k + 2)))
    if layout == "last:conv_transpose":  # (*k, in, out), not mirrored
        return np.flip(array.transpose(k, k + 1, *range(k)), tuple(range(2, k + 2)))
    if layout == "first:conv_transpose":  # (out, in, *k), not mirrored
        return np.flip(array.swapaxes(0, 1), tuple(range(2, k + 2)))
    return array


def from_torch(layout: str, array: Any, shape: tuple[int, ...]) -> Any:
    """Torch's array with the layout's axis order; shape is the one it must come out with."""
    k = len(shape) - 2
    if layout == "vector":
        return array.reshape(shape)
    if layout == "last:linear":
        return array.T
    if layout in ("last:conv", "gradient:conv_transpose"):
        return array.transpose(*range(2, k + 2), 1, 0)
    if layout == "last:depthwise":
        return array.reshape(shape[k], shape[k + 1], *array.shape[2:]).transpose(*range(2, k + 2), 0, 1)
    if layout == "haiku:conv_transpose":
        return np.flip(array, tuple(range(2, k + 2))).transpose(*range(2, k + 2), 1, 0)
    if layout == "last:conv_transpose":
        return np.flip(array, tuple(range(2, k + 2))).transpose(*range(2, k + 2), 0, 1)
    if layout == "first:conv_transpose":
        return np.flip(array, tuple(range(2, k + 2))).swapaxes(0, 1)
    return array
