"""What a Keras layer's variables are: from its class and settings, or from names and shapes where a file has none."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from batchnorm.errors import BatchNormError
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.weights import Layer, Slot

_ROLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KINDS = (  # class names, and the snake case of them that files use as group names
    (r"SeparableConv[123]D", "separable", "last:conv"),
    (r"DepthwiseConv[123]D", "conv", "last:depthwise"),
    (r"Conv[123]DTranspose", "conv_transpose", "gradient:conv_transpose"),
    (r"Conv[123]D", "conv", "last:conv"),
    (r"Dense", "linear", "last:linear"),
    (r"BatchNormalization", "batch_norm", ""),
    (r"LayerNormalization|GroupNormalization", "affine", ""),
)


class Variable(NamedTuple):
    """A variable of a layer: where it lies, its name if known, its array."""

    key: Hashable
    name: str | None
    array: Any


def layers_of(
    name: str, class_name: str | None, config: Mapping[str, Any], variables: Sequence[Variable]
) -> list[Layer]:
    """The layers that one Keras layer is to torch: one, or two for a separable convolution."""
    kind, layout = _kind(class_name, variables)
    names = [v.name for v in variables]
    if any(n is None for n in names):
        names = _names(name, kind, config, variables)
    keyed = {str(n): v for n, v in zip(names, variables, strict=True)}
    if kind == "separable":
        depth = Slot(keyed["depthwise_kernel"].key, "last:depthwise")
        point = Slot(keyed["pointwise_kernel"].key, layout)
        bias = {"bias": Slot(keyed["bias"].key, "vector")} if "bias" in keyed else {}
        return [
            Layer(f"{name}/depthwise", "conv", {"weight": depth}),
            Layer(f"{name}/pointwise", "conv", {"weight": point, **bias}),
        ]
    if kind == "other":
        return [Layer(f"{name}/{n}", "other", {"weight": Slot(v.key, "")}) for n, v in keyed.items()]
    slots = {_ROLES[n]: Slot(v.key, layout if n == "kernel" else "vector") for n, v in keyed.items() if n in _ROLES}
    rest = [Layer(f"{name}/{n}", "other", {"weight": Slot(v.key, "")}) for n, v in keyed.items() if n not in _ROLES]
    if kind == "batch_norm":
        momentum = config.get("momentum")
        turned = None if momentum is None else torch_momentum(momentum)
        return [Layer(name, kind, slots, config.get("epsilon"), turned), *rest]
    return [Layer(name, kind, slots), *rest]


def known_class(cls: type) -> str:
    """The name of the first class a layer's class is or inherits from that is known here, else its own."""
    names = [c.__name__ for c in cls.__mro__]
    return next((n for n in names for pattern, _, _ in _KINDS if re.fullmatch(f"(?i:{pattern})", n)), names[0])


def _kind(class_name: str | None, variables: Sequence[Variable]) -> tuple[str, str]:
    for pattern, kind, layout in _KINDS:
        if class_name and re.fullmatch(f"(?i:{pattern})", class_name.replace("_", "")):
            return kind, layout
    if class_name:
        return "other", ""
    named = {v.name for v in variables}
    shapes = [v.array.shape for v in variables]
    if "moving_mean" in named or (len(shapes) == 4 and len(set(shapes)) == 1 and len(shapes[0]) == 1):
        return "batch_norm", ""
    vector_after = len(shapes) == 1 or (len(shapes) == 2 and len(shapes[1]) == 1)
    if vector_after and len(shapes[0]) == 2:
        return "linear", "last:linear"
    if vector_after and len(shapes[0]) in (3, 4, 5):
        return "conv", "last:conv"
    return "other", ""


def _names(name: str, kind: str, config: Mapping[str, Any], variables: Sequence[Variable]) -> list[str]:
    """The names of variables that a file only numbers."""
    if kind == "batch_norm":
        affine = ["gamma"] * bool(config.get("scale", True)) + ["beta"] * bool(config.get("center", True))
        if not config and len(variables) == 3:
            raise BatchNormError(
                f"source must say whether batch norm layer {name!r} has a scale or an offset, since it has only one of "
                "them; this file holds no settings: use the .keras file"
            )
        if not config and len(variables) == 2:
            affine = []
        known = [*affine, "moving_mean", "moving_variance"]
    elif kind == "separable":
        known = ["depthwise_kernel", "pointwise_kernel", "bias"]
    elif kind == "affine":
        known = ["gamma", "beta"]
    elif kind == "other":
        known = []
    else:
        known = ["kernel", "bias"]
    if kind == "batch_norm" and len(variables) < len(known):
        raise BatchNormError(f"source must hold the {len(known)} variables of {name!r}; it holds {len(variables)}")
    return [*known[: len(variables)], *(str(i) for i in range(len(known), len(variables)))]
