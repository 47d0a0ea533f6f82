"""Make the activation after a batch norm layer a part of it, and a module of its own again."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchnorm.layers import BatchNorm
from batchnorm.models.contexts import own_layers
from batchnorm.models.graph import links


def fuse_activations(model: nn.Module) -> nn.Module:
    """Let each batch norm layer that is followed by ReLU or LeakyReLU apply it itself.

    Example:
        >>> import torch, batchnorm
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), batchnorm.BatchNorm1d(4), torch.nn.ReLU())
        >>> x = torch.randn(8, 3)
        >>> before = net(x)
        >>> torch.equal(batchnorm.fuse_activations(net)(x), before), net[1].activation, net[2]
        (True, 'relu', Identity())

    The activation module is replaced by `nn.Identity`, which keeps every path of the model, and
    `to_stock` puts it back. Only where it is certain: the layer's output goes to the activation
    alone and the activation takes its input from nothing but such layers. Models that
    `torch.fx` cannot trace are looked at inside `nn.Sequential` only.

    Args:
        model: changed in place and returned.

    Raises:
        BatchNormError: a model with torch's layers, or without any.
    """
    layers = own_layers(model, "fuse_activations()")
    found, modules = links(model), dict(model.named_modules())
    fused: dict[str, str] = {}
    for name, layer in layers.items():
        after = found.only_follower(name)
        if after is None or layer.activation is not None or not isinstance(modules.get(after), nn.ReLU | nn.LeakyReLU):
            continue
        if all(feeder in layers and found.only_follower(feeder) == after for feeder in found.feeders[after] - {None}):
            fused[name] = after
    # Something other than these layers feeds the activation: it must stay.
    fused = {name: after for name, after in fused.items() if None not in found.feeders[after]}
    for name, after in fused.items():
        layer, activation = layers[name], modules[after]
        layer.activation = "leaky_relu" if isinstance(activation, nn.LeakyReLU) else "relu"
        layer.negative_slope = getattr(activation, "negative_slope", layer.negative_slope)
        layer.fused_from = after
    for after in set(fused.values()):
        set_module(model, after, nn.Identity())
    return model


def activation_of(layer: BatchNorm) -> nn.Module:
    """The module that does what the layer's fused activation does."""
    return nn.ReLU() if layer.activation == "relu" else nn.LeakyReLU(layer.negative_slope)


def set_module(model: nn.Module, path: str, new: Any) -> None:
    """Put a module in the place of another, under every name it has."""
    old = model.get_submodule(path)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)
