"""Keras models in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchnorm.errors import BatchNormError
from batchnorm.interop.keras_layers import Variable, known_class, layers_of
from batchnorm.interop.statistics import torch_momentum
from batchnorm.interop.weights import Layer, Weights


def read_keras_model(model: Any) -> Weights:
    """The layers of a built Keras model, each with its own variables."""
    raw: dict[Any, Any] = {}
    layers: list[Layer] = []
    owners: dict[str, Any] = {}
    for path, layer in _own(model):
        variables = [Variable(v.path, v.name, np.asarray(_numpy(v))) for v in _variables(layer)]
        if not variables or owners.get(path) is layer:
            continue
        if path in owners:
            raise BatchNormError(f"source must have layers of different names; two are called {path!r}")
        raw.update((v.key, v.array) for v in variables)
        layers += layers_of(path, known_class(type(layer)), _config(layer), variables)
        owners[path] = layer
    return Weights("keras model", raw, layers, True, "biased", source=(model, owners))


def write_keras_model(
    target: Weights, raw: Mapping[Any, Any], settings: Mapping[str, tuple[float, float | None]]
) -> Any:
    """Set a model's variables, epsilon and momentum in place."""
    model, owners = target.source
    variables = {v.path: v for layer in owners.values() for v in _variables(layer)}
    for key, array in raw.items():
        variables[key].assign(array)
    for name, (eps, momentum) in settings.items():
        owners[name].epsilon = eps
        if momentum is not None:
            owners[name].momentum = torch_momentum(momentum)
    return model


def _own(model: Any) -> list[tuple[str, Any]]:
    found = []
    for layer in model._flatten_layers(include_self=True, recursive=True):
        variables = _variables(layer)
        if variables:
            found.append((variables[0].path.rpartition("/")[0], layer))
    order = {id(layer): i for i, layer in enumerate(_called(model))}
    return sorted(found, key=lambda f: order.get(id(f[1]), len(order)))


def _called(model: Any) -> list[Any]:
    """Layers in the order of the graph, nested models opened."""
    return [leaf for layer in getattr(model, "layers", []) for leaf in ([layer, *_called(layer)])]


def _variables(layer: Any) -> list[Any]:
    """What the layer itself holds: not its children's, and no random number generator."""
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    return [v for v in own if "seed_generator" not in v.path]


def _config(layer: Any) -> dict[str, Any]:
    return {"epsilon": getattr(layer, "epsilon", None), "momentum": getattr(layer, "momentum", None)}


def _numpy(variable: Any) -> Any:
    value = variable.value
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
