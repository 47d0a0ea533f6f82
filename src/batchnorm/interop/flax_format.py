"""Flax: linen's variables (`params` and `batch_stats`) and nnx modules or their pure dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchnorm.interop.extras import needs
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.trees import as_array, flatten, unflatten
from batchnorm.interop.weights import Layer, Slot, Weights

_ROLES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def read_tree(tree: Mapping[str, Any]) -> Weights:
    """The layers of linen's variables or of a pure dictionary of nnx; neither holds eps or momentum."""
    flat = flatten(tree)
    linen = "params" in tree
    return _read(flat, 1 if linen else 0, {}, "flax", tree)


def read_nnx(module: Any) -> Weights:
    """The layers of an nnx module, with epsilon and momentum."""
    nnx = needs("flax.nnx")
    tree = nnx.to_pure_dict(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    owners = {path: node for path, node in nnx.iter_graph(module) if type(node).__module__.startswith("flax.nnx.nn.")}
    return _read(flatten(tree), 0, owners, "nnx module", (module, owners))


def _read(flat: Mapping[Any, Any], skip: int, owners: Mapping[Any, Any], form: str, source: Any) -> Weights:
    raw = {path: as_array(leaf) for path, leaf in flat.items() if path[-2:-1] != ("rngs",)}
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in raw:
        groups.setdefault(path[skip:-1], {})[str(path[-1])] = path
    layers = [x for path, leaves in groups.items() for x in _layers(path, leaves, raw, owners.get(path))]
    return Weights(form, raw, layers, False, "biased", source=source)


def _layers(path: tuple[Any, ...], leaves: dict[str, Any], raw: Mapping[Any, Any], owner: Any) -> list[Layer]:
    name = "/".join(map(str, path))
    if leaves.keys() >= {"mean", "var"}:
        slots = {_ROLES[leaf]: Slot(key, "vector") for leaf, key in leaves.items() if leaf in _ROLES}
        momentum = getattr(owner, "momentum", None)
        eps = getattr(owner, "epsilon", None)
        return [Layer(name, "batch_norm", slots, eps, None if momentum is None else torch_momentum(momentum))]
    if "kernel" in leaves and leaves.keys() <= {"kernel", "bias"}:
        rank = raw[leaves["kernel"]].ndim
        turned = "ConvTranspose" in type(owner).__name__ or "convtranspose" in str(path[-1:]).lower().replace("_", "")
        kind = "linear" if rank == 2 else "conv_transpose" if turned else "conv"
        family = "gradient" if getattr(owner, "transpose_kernel", False) else "last"
        slots = {"weight": Slot(leaves["kernel"], f"{family}:{kind}")}
        if "bias" in leaves:
            slots["bias"] = Slot(leaves["bias"], "vector")
        if rank >= 2:
            return [Layer(name, kind, slots, guessed=rank > 2 and owner is None)]
    if "scale" in leaves and leaves.keys() <= {"scale", "bias"}:
        return [Layer(name, "affine", {_ROLES[leaf]: Slot(key, "vector") for leaf, key in leaves.items()})]
    return [Layer("/".join(map(str, key)), "other", {"weight": Slot(key, "")}) for key in leaves.values()]


def write_tree(target: Weights, raw: Mapping[Any, Any]) -> dict[Any, Any]:
    """The tree with new arrays."""
    kept = flatten(target.source) if isinstance(target.source, Mapping) else {}
    return unflatten({**kept, **raw})


def write_nnx(target: Weights, raw: Mapping[Any, Any], settings: Mapping[str, tuple[float, float | None]]) -> Any:
    """Set an nnx module's variables, epsilon and momentum in place."""
    nnx = needs("flax.nnx")
    module, owners = target.source
    state = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    nnx.replace_by_pure_dict(state, unflatten({path: needs("jax.numpy").asarray(a) for path, a in raw.items()}))
    nnx.update(module, state)
    named = {"/".join(map(str, path)): owner for path, owner in owners.items()}
    for name, (eps, momentum) in settings.items():
        named[name].epsilon = eps
        if momentum is not None:
            named[name].momentum = torch_momentum(momentum)
    return module


def blank_tree(source: Weights) -> Weights:
    """Empty linen variables whose names and shapes are the source's."""
    raw: dict[Any, Any] = {}
    layers: list[Layer] = []
    for layer in source.layers:
        path = tuple(layer.name.replace("/", ".").split("."))
        slots: dict[str, Slot] = {}
        for role, value in source.values(layer).items():
            if role == "num_batches_tracked":
                continue
            collection = "batch_stats" if role.startswith("running_") else "params"
            leaf = _LEAVES.get(role, "scale" if layer.kind in ("batch_norm", "affine") else "kernel")
            turns = role == "weight" and layer.kind in ("conv", "conv_transpose", "linear")
            layout = f"last:{layer.kind}" if turns else ""
            slots[role] = Slot((collection, *path, leaf) if layer.kind != "other" else (collection, *path), layout)
            raw[slots[role].key] = np.zeros(_shape(layer.kind, value.shape) if turns else value.shape, value.dtype)
        layers.append(Layer(layer.name, layer.kind, slots))
    return Weights("flax", raw, layers, True, "biased")


def _shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    first, second, *kernel = shape
    return (*kernel, first, second) if kind == "conv_transpose" else (*kernel, second, first)
