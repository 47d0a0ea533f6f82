"""Equinox: a pair of model and state, walked by attribute; batch norm's debiased averages live in the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from batchnorm.interop.extras import needs
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.trees import as_array
from batchnorm.interop.weights import Layer, Slot, Weights


def read_equinox(pair: tuple[Any, Any]) -> Weights:
    """The layers of `(model, state)` in the order of the attributes, with eps and momentum."""
    model, state = pair
    raw: dict[Any, Any] = {}
    layers: list[Layer] = []
    for path, node in _modules(model, ()):
        name = ".".join(map(str, path))
        kind = type(node).__name__
        if kind == "BatchNorm":
            layers.append(_batch_norm(name, path, node, state, raw))
            continue
        arrays = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        arrays = {leaf: a for leaf, a in arrays.items() if hasattr(a, "shape") and hasattr(a, "dtype")}
        raw.update({(*path, leaf): as_array(a) for leaf, a in arrays.items()})
        if arrays:
            layers += _layers(name, path, kind, arrays)
    return Weights("equinox", raw, layers, True, "biased", None, source=pair)


def _modules(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        yield path, node
        if type(node).__name__ != "BatchNorm":
            for field in dataclasses.fields(node):
                yield from _modules(getattr(node, field.name, None), (*path, field.name))
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _modules(child, (*path, i))
    elif isinstance(node, dict):
        for key, child in node.items():
            yield from _modules(child, (*path, key))


def _batch_norm(name: str, path: tuple[Any, ...], node: Any, state: Any, raw: dict[Any, Any]) -> Layer:
    ema = node.mode == "ema"
    mean, var = state.get(node.ema_state_index if ema else node.batch_state_index)
    flag = state.get(node.ema_first_time_index if ema else node.batch_counter)
    role = "first_time" if ema else "counter"
    arrays = {"running_mean": mean, "running_var": var, role: flag}
    slots = {}
    for key, array in arrays.items():
        raw[*path, "state", key] = as_array(array)
        slots[key] = Slot((*path, "state", key), "")
    for leaf in ("weight", "bias"):
        if getattr(node, leaf) is not None:
            raw[*path, leaf] = as_array(getattr(node, leaf))
            slots[leaf] = Slot((*path, leaf), "")
    codec = "equinox_ema" if ema else "equinox"
    return Layer(name, "batch_norm", slots, node.eps, torch_momentum(node.momentum), codec)


def _layers(name: str, path: tuple[Any, ...], kind: str, arrays: Mapping[str, Any]) -> list[Layer]:
    if arrays.keys() <= {"weight", "bias"} and "weight" in arrays:
        kinds = {"Linear": ("linear", ""), "LayerNorm": ("affine", ""), "GroupNorm": ("affine", "")}
        ours, layout = kinds.get(kind, ("other", ""))
        if kind.startswith("ConvTranspose"):
            ours, layout = "conv_transpose", "first:conv_transpose"
        elif kind.startswith("Conv"):
            ours = "conv"
        if ours != "other":
            layouts = {"weight": layout, "bias": "vector"}
            return [Layer(name, ours, {leaf: Slot((*path, leaf), layouts[leaf]) for leaf in arrays})]
    return [Layer(f"{name}.{leaf}", "other", {"weight": Slot((*path, leaf), "")}) for leaf in arrays]


def write_equinox(target: Weights, raw: Mapping[Any, Any]) -> tuple[Any, Any]:
    """A new `(model, state)`; eps and momentum are part of the model's structure and stay."""
    eqx, jnp = needs("equinox"), needs("jax.numpy")
    model, state = target.source
    state = needs("jax").tree_util.tree_map(lambda leaf: leaf, state)  # setting makes the old state invalid
    nodes = dict(_modules(model, ()))
    for path, node in nodes.items():
        if type(node).__name__ == "BatchNorm":
            mean, var = (jnp.asarray(raw[*path, "state", n]) for n in ("running_mean", "running_var"))
            ema = node.mode == "ema"
            state = state.set(node.ema_state_index if ema else node.batch_state_index, (mean, var))
            flag = raw[*path, "state", "first_time" if ema else "counter"]
            index = node.ema_first_time_index if ema else node.batch_counter
            # A counter is of a weak type, which only arithmetic with Python's numbers keeps.
            state = state.set(index, jnp.asarray(bool(flag)) if ema else state.get(index) * 0 + int(flag))
    paths = [path for path in raw if "state" not in path[-2:-1]]
    replace = [jnp.asarray(raw[path]) for path in paths]
    model = eqx.tree_at(lambda m: [_at(m, path) for path in paths], model, replace)
    return model, state


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = getattr(node, key) if isinstance(key, str) and not isinstance(node, dict) else node[key]
    return node
