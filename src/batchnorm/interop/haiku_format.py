"""Haiku: a pair of parameters and state, whose averages keep a raw value, a debiased one and a counter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchnorm.interop.trees import as_array, flatten, unflatten
from batchnorm.interop.weights import Layer, Slot, Weights

_MEAN, _VAR = "/~/mean_ema", "/~/var_ema"


def read_haiku(pair: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Weights:
    """The layers of `(params, state)`; they hold neither eps nor the decay rate."""
    params, state = pair
    flat = {("params", *p): leaf for p, leaf in flatten(params).items()}
    flat |= {("state", *p): leaf for p, leaf in flatten(state).items()}
    raw = {path: as_array(leaf) for path, leaf in flat.items()}
    normal = {str(name)[: -len(_MEAN)] for name in state if str(name).endswith(_MEAN)}
    layers = [_batch_norm(name, raw) for name in sorted(normal)]
    groups: dict[str, dict[str, Any]] = {}
    for path in raw:
        if path[0] == "params" and path[1] not in normal:
            groups.setdefault(path[1], {})[path[2]] = path
    layers += [layer for name, leaves in groups.items() for layer in _layers(name, leaves, raw)]
    # An average's variance starts at 0 and is debiased, so no start is left in it.
    return Weights("haiku", raw, layers, False, "biased", None, source=pair)


def _batch_norm(name: str, raw: Mapping[Any, Any]) -> Layer:
    slots = {
        "weight": Slot(("params", name, "scale"), "vector"),
        "bias": Slot(("params", name, "offset"), "vector"),
        "running_mean": Slot(("state", name + _MEAN, "average"), "vector"),
        "running_var": Slot(("state", name + _VAR, "average"), "vector"),
        "hidden_mean": Slot(("state", name + _MEAN, "hidden"), "vector"),
        "hidden_var": Slot(("state", name + _VAR, "hidden"), "vector"),
        "counter": Slot(("state", name + _MEAN, "counter"), ""),
        "counter_var": Slot(("state", name + _VAR, "counter"), ""),
    }
    return Layer(name, "batch_norm", {role: slot for role, slot in slots.items() if slot.key in raw}, codec="haiku")


def _layers(name: str, leaves: dict[str, Any], raw: Mapping[Any, Any]) -> list[Layer]:
    if "w" in leaves and leaves.keys() <= {"w", "b"}:
        rank = raw[leaves["w"]].ndim
        turned = "transpose" in name.rpartition("/")[2]
        kind = "linear" if rank == 2 else "conv_transpose" if turned else "conv"
        layout = "haiku:conv_transpose" if turned else f"last:{kind}"
        slots = {"weight": Slot(leaves["w"], layout)}
        if "b" in leaves:
            slots["bias"] = Slot(leaves["b"], "vector")
        return [Layer(name, kind, slots)]
    if "scale" in leaves and leaves.keys() <= {"scale", "offset"}:
        roles = {"scale": "weight", "offset": "bias"}
        return [Layer(name, "affine", {roles[leaf]: Slot(key, "vector") for leaf, key in leaves.items()})]
    return [Layer("/".join(key[1:]), "other", {"weight": Slot(key, "")}) for key in leaves.values()]


def write_haiku(target: Weights, raw: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """New `(params, state)`."""
    tree = unflatten(raw)
    return tree.get("params", {}), tree.get("state", {})
