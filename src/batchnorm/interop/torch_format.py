"""State dicts and modules of torch: layers recognised by their key sets, never by their names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from batchnorm.interop.weights import Layer, Slot, Weights
from batchnorm.layers import BatchNorm
from batchnorm.models import to_stock

_STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MOVING = {"running_mean", "running_var"}


def key_sets(state: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The tensors of each module by the path of the module, in the order of the state dict.

    Example:
        >>> import torch
        >>> key_sets(torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict())
        {'0': {'weight': '0.weight', 'bias': '0.bias'}}
    """
    groups: dict[str, dict[str, str]] = {}
    for key in state:
        path, _, leaf = key.rpartition(".")
        groups.setdefault(path, {})[leaf] = key
    return groups


def is_batch_norm(leaves: Mapping[str, Any]) -> bool:
    """Whether the names of a module's tensors are a batch norm layer's that tracks statistics.

    Example:
        >>> is_batch_norm({"running_mean": 0, "running_var": 0, "weight": 0})
        True
    """
    return leaves.keys() >= MOVING or leaves.keys() >= {"running_mean", "running_std"}


def read_state(state: Mapping[str, Tensor]) -> Weights:
    """The layers of a state dict; it holds no eps and no momentum."""
    raw = {key: as_array(t) for key, t in state.items() if isinstance(t, Tensor)}
    layers = [layer for path, leaves in key_sets(raw).items() for layer in _layers(path, leaves, raw, None)]
    return Weights("torch", dict(raw), layers, True, "unbiased", source=state)


def read_module(module: nn.Module) -> Weights:
    """The layers of a model in the order in which it defines them, with eps and momentum; shared ones once.

    Raises:
        BatchNormError: a layer of this package whose inference no stock layer gives.
    """
    held = {key: t for key, t in module.state_dict().items() if isinstance(t, Tensor)}
    if any(isinstance(m, BatchNorm) for m in module.modules()):
        stock = to_stock(copy.deepcopy(module)).state_dict()  # it says which layer cannot, and why
        if stock.keys() <= held.keys():  # else an activation has become a module of its own
            held = stock
    firsts = {(t.data_ptr(), t.shape) if t.numel() else key: key for key, t in reversed(held.items())}
    raw = {key: as_array(held[key]) for key in held if key in set(firsts.values())}
    modules, layers = dict(module.named_modules()), []
    for path, leaves in key_sets(raw).items():
        layers += _layers(path, leaves, raw, modules.get(path))
    return Weights("torch module", dict(raw), layers, True, "unbiased", source=module)


def _layers(path: str, leaves: dict[str, str], raw: Mapping[str, Any], module: nn.Module | None) -> list[Layer]:
    if is_batch_norm(leaves):
        known = {role: Slot(key, "") for role, key in leaves.items() if role in (*_STATISTICS, "running_std")}
        codec = "plain" if "running_var" in leaves else "std"
        eps, momentum = getattr(module, "eps", None), getattr(module, "momentum", None)
        layers = [Layer(path, "batch_norm", known, eps, momentum, codec)]
        return layers + [_other(key) for role, key in leaves.items() if role not in known]
    weight = leaves.get("weight")
    if weight is None or not leaves.keys() <= {"weight", "bias"}:
        return [_other(key) for key in leaves.values()]
    slots = {role: Slot(key, "") for role, key in leaves.items()}
    kind = {1: "affine", 2: "linear"}.get(raw[weight].ndim, "conv")
    if isinstance(module, _BatchNorm) and kind == "affine":
        return [Layer(path, "batch_norm", slots, module.eps, module.momentum)]
    if isinstance(module, _ConvTransposeNd):
        return [Layer(path, "conv_transpose", slots)]
    return [Layer(path, kind, slots, guessed=kind == "conv" and not isinstance(module, _ConvNd))]


def _other(key: str) -> Layer:
    return Layer(key, "other", {"weight": Slot(key, "")})


def as_array(tensor: Tensor) -> Any:
    """A tensor as numpy holds it; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def write_state(target: Weights, raw: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict of the new arrays, in the template's dtypes."""
    template = target.source if isinstance(target.source, Mapping) else {}
    state: dict[str, Tensor] = {}
    for key, array in raw.items():
        old = template.get(key)
        state[key] = torch.from_numpy(np.array(array)).to(None if old is None else old.dtype)
    return state


def write_module(target: Weights, raw: Mapping[Any, Any], settings: Mapping[str, tuple[float, float | None]]) -> Any:
    """Set a model's tensors, eps and momentum in place."""
    module: nn.Module = target.source
    state, modules = module.state_dict(), dict(module.named_modules())
    with torch.no_grad():
        for key, array in raw.items():
            state[key].copy_(torch.from_numpy(np.array(array)))
    for name, (eps, momentum) in settings.items():
        layer: Any = modules[name]
        layer.eps = eps
        if momentum is not None:
            layer.momentum = momentum
    return module


def blank_state(source: Weights) -> Weights:
    """An empty state dict whose names and shapes are the source's."""
    raw: dict[Any, Any] = {}
    layers: list[Layer] = []
    for layer in source.layers:
        values = source.values(layer)
        if layer.kind == "batch_norm":
            values.setdefault("num_batches_tracked", np.zeros((), np.int64))
        name = layer.name.replace("/", ".")
        plain = layer.kind == "other"
        slots = {role: Slot(name if plain else f"{name}.{role}" if name else role, "") for role in values}
        raw.update((slots[role].key, np.zeros_like(value)) for role, value in values.items())
        layers.append(Layer(name, layer.kind, slots))
    return Weights("torch", raw, layers, True, "unbiased")
