"""Linear layers of other libraries' classes, recognised by what they compute."""

from __future__ import annotations

from torch import fx, nn
from torch.nn import functional

from batchnorm.models.folding.absorb import LINEAR_MAPS
from batchnorm.models.graph.trace import trace


def as_linear(model: nn.Module) -> nn.Module:
    """Put an `nn.Linear` with the same parameters in the place of each module that is one by another name."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and _is_linear(child):
                new = nn.Linear(1, 1, bias=False, device="meta").train(child.training)
                new.weight, new.bias = child.weight, getattr(child, "bias", None)  # pyright: ignore
                new.out_features, new.in_features = new.weight.shape
                parent._modules[name] = new
    return model


def _is_linear(module: nn.Module) -> bool:
    """Whether the forward is `F.linear` of the input, the weight and the bias, and nothing else."""
    held = {name for name, value in module._parameters.items() if value is not None}
    if isinstance(module, (*LINEAR_MAPS, fx.GraphModule)) or "weight" not in held or held - {"weight", "bias"}:
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks
    if hooks or module._modules or module._buffers or getattr(module.weight, "dim", int)() != 2:
        return False
    graph = trace(module)
    nodes = [] if graph is None else [node for node in graph.nodes if node.op not in ("placeholder", "get_attr")]
    if len(nodes) != 2 or nodes[0].target is not functional.linear or nodes[1].args[0] is not nodes[0]:
        return False
    names = ("input", "weight", "bias")
    given = {**dict(zip(names, nodes[0].args, strict=False)), **nodes[0].kwargs}
    read = {name: node.target for name, node in given.items() if isinstance(node, fx.Node)}
    placed = isinstance(given["input"], fx.Node) and given["input"].op == "placeholder"
    return placed and read.get("weight") == "weight" and ("bias" in read) == ("bias" in held)
