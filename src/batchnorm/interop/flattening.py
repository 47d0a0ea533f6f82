"""A linear layer behind a flatten sees (C, H, W) in one framework and (H, W, C) in the other: its columns move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from batchnorm.errors import BatchNormError, check
from batchnorm.interop.pairing import Pair
from batchnorm.interop.weights import Weights

Flatten = Mapping[str, Sequence[int]]
_LAST = ("keras", "flax", "nnx", "haiku")


def channels_last(weights: Weights) -> bool:
    """Whether a flatten in this format puts channels last."""
    return weights.format.startswith(_LAST)


def reorder(weight: Any, have: Weights, want: Weights, shape: Sequence[int]) -> Any:
    """The (out, in) weight with its columns in the target's order; shape is (C, *spatial) before the flatten.

    Raises:
        BatchNormError: a shape that does not multiply to the columns.
    """
    legal = f"(channels, *spatial) that multiply to {weight.shape[1]}"
    check(math.prod(shape) == weight.shape[1] and len(shape) > 1, "flatten", legal, tuple(shape))
    if channels_last(have) == channels_last(want):
        return weight
    channels, *spatial = shape
    if channels_last(have):
        return _columns(weight, (*spatial, channels), (len(spatial) + 1, *range(1, len(spatial) + 1)))
    return _columns(weight, (channels, *spatial), (*range(2, len(spatial) + 2), 1))


def _columns(weight: Any, shape: tuple[int, ...], order: tuple[int, ...]) -> Any:
    return weight.reshape(-1, *shape).transpose(0, *order).reshape(weight.shape)


def check_names(flatten: Flatten, pairs: Sequence[Pair]) -> None:
    """Refuse names that are no linear layer of the target."""
    linear = [p.target.name for p in pairs if p.target.kind == "linear"]
    for name in flatten:
        if name not in linear:
            raise BatchNormError(
                f"flatten must name linear layers of the target; {name!r} is none of {', '.join(linear)}"
            )


def suspects(have: Weights, want: Weights, pairs: Sequence[Pair], flatten: Flatten) -> list[str]:
    """First linear layers after a convolution that take several values a channel: likely behind a flatten."""
    if channels_last(have) == channels_last(want):
        return []
    found, channels = [], 0
    for one in pairs:
        if one.target.kind.startswith("conv"):
            signature = want.signature(one.target)
            channels = signature[1 if one.target.kind == "conv_transpose" else 0]
        if one.target.kind == "linear":
            columns = want.signature(one.target)[1]
            if channels and columns > channels and columns % channels == 0 and one.target.name not in flatten:
                found.append(one.target.name)
            channels = 0
    return found
