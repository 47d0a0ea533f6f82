"""Make the activation after a batch norm layer a part of it, and a module of its own again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn

from batchnorm.arguments import a_flag, a_module_with_values, arguments
from batchnorm.layers import BatchNorm
from batchnorm.layers.activation import MODULES
from batchnorm.models.batches import counted
from batchnorm.models.contexts import own_layers
from batchnorm.models.example import Example
from batchnorm.models.find import Model
from batchnorm.models.graph.flow import Edge, Flow, flow_of
from batchnorm.models.graph.record import recorded
from batchnorm.models.state import evaluating


@dataclass(frozen=True)
class Fusing:
    """What `fuse_activations` did: the activation that each layer took over, and why each other one was left."""

    fused: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        taken = len(set(self.fused.values()))
        words = f"Fused {counted(taken, 'activation')} of {taken + len(self.left)} into batch norm layers."
        return " ".join([words, *(f"{name or '(root)'} was left: {why}." for name, why in self.left.items())])


@arguments(model=a_module_with_values, progress=a_flag)
def fuse_activations(model: Model, example_input: Any = None, *, progress: bool = True) -> Model:
    """Let each batch norm layer that is followed by an activation apply it itself.

    Example:
        >>> import torch, batchnorm
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), batchnorm.BatchNorm1d(4), torch.nn.ReLU())
        >>> x = torch.randn(8, 3)
        >>> before = net(x)
        >>> torch.equal(batchnorm.fuse_activations(net)(x), before), net[1].activation, net[2]
        (True, 'relu', Identity())

    ReLU, LeakyReLU, ReLU6, SiLU, Hardswish and GELU are taken over. `nn.Identity` takes the module's
    place, which keeps every path of the model, and `to_stock` puts the same object back. Only where it
    is certain: the layer's output goes to the activation alone, the activation takes its input from
    nothing but such layers, and it has no
    hooks. Models that `torch.fx` cannot trace are recorded on `example_input`; without one they
    are looked at in their parts.

    Args:
        model: changed in place and returned.
        example_input: a tensor, a tuple of the model's arguments, or a dict of its keyword arguments.
        progress: say on stderr which activations were left, and why, if any was.

    Raises:
        BatchNormError: a model with torch's layers, or without any.
    """
    layers = own_layers(model, "fuse_activations()")
    example = None if example_input is None else Example(example_input)
    flow = flow_of(model, None if example is None else lambda: _recorded(model, example))
    modules: dict[str, nn.Module] = dict(model.named_modules())
    plan = _plan(flow, layers, modules)
    for name, after in plan.fused.items():
        layer, activation = layers[name], modules[after]
        layer.activation = _name_of(activation)
        layer.negative_slope = getattr(activation, "negative_slope", layer.negative_slope)
        layer.fused_from = after
    for after in set(plan.fused.values()):
        place: Any = nn.Identity().train(modules[after].training)
        # In a tuple, so that it is no part of the model; copies and pickles carry it.
        place.stands_for = (modules[after],)
        set_module(model, after, place)
    if plan.left and progress:
        print(f"batchnorm.fuse_activations: {plan}", file=sys.stderr)
    return model


def _recorded(model: nn.Module, example: Example) -> Any:
    with evaluating(model):
        return recorded(model, example)


def _plan(flow: Flow, layers: dict[str, BatchNorm], modules: dict[str, nn.Module]) -> Fusing:
    """Which layers take over which activation, and why the other activations stay."""
    fused: dict[str, str] = {}
    left: dict[str, str] = {}
    for after, module in modules.items():
        if not isinstance(module, _ACTIVATIONS):
            continue
        feeders = {edge.source: edge for edge in flow.into(after)}
        reason = _why_not(after, module, feeders, flow, layers)
        if reason is None:
            fused.update({str(name): after for name in feeders})
        else:
            left[after] = reason
    for name in layers:
        functions = {edge.what for edge in flow.out_of(name) if edge.target is None} & _FUNCTIONS
        if functions:
            left[f"{functions.pop()} after {name}"] = "it is a function in forward, not a module that can be replaced"
    return Fusing(fused, left)


def _why_not(
    after: str, module: nn.Module, feeders: dict[str | None, Edge], flow: Flow, layers: dict[str, BatchNorm]
) -> str | None:
    if _name_of(module) is None:
        *most, last = (kind.__name__ for kind in MODULES.values())
        kind = type(module).__name__ if type(module) is not nn.GELU else "GELU by its tanh approximation"
        return f"layers apply {', '.join(most)} and {last}, not {kind}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks, which would no longer run"
    if not feeders:
        return "what feeds it is not certain"
    for name, edge in feeders.items():
        if name is None or name not in layers:
            return f"its input comes from {edge.what}"
        if edge.via:
            return f"there is something between {name} and it that moves or averages values"
        if layers[name].activation is not None:
            return f"{name} applies an activation already"
        if {(e.target, e.via) for e in flow.out_of(name)} != {(after, ())}:
            return f"{name} feeds something else too"
    return None


_FUNCTIONS = {"relu", "relu_", "leaky_relu", "leaky_relu_", "silu", "gelu", "hardswish", "relu6", "hardtanh", "elu"}
_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.ELU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.Mish,
    nn.Softplus, nn.SELU, nn.CELU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid,
)  # fmt: skip


def activation_of(layer: BatchNorm) -> nn.Module:
    """The module that does what the layer's fused activation does."""
    kind: Any = MODULES[layer.activation or ""]
    return kind(layer.negative_slope) if kind is nn.LeakyReLU else kind()


def _name_of(module: nn.Module) -> Any:
    """What a layer's argument `activation` calls a module; None where it has no name for it."""
    if getattr(module, "approximate", "none") != "none":
        return None
    return next((name for name, kind in MODULES.items() if type(module) is kind), None)


def set_module(model: nn.Module, path: str, new: Any) -> None:
    """Put a module in the place of another, under every name it has."""
    old = model.get_submodule(path)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)
