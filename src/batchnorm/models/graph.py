"""Which module feeds which: from a symbolic trace, or inside `nn.Sequential` where a model cannot be traced."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.state import preserved

# None stands for anything that is not a module's own output or input.
Ends = set[str | None]


@dataclass
class Links:
    """Every module's feeders and followers by path, over all its uses; complete says the whole model was traced."""

    feeders: dict[str, Ends] = field(default_factory=dict[str, Ends])
    followers: dict[str, Ends] = field(default_factory=dict[str, Ends])
    complete: bool = True

    def add(self, source: str | None, target: str | None) -> None:
        """A value goes from source to target."""
        if target is not None:
            self.feeders.setdefault(target, set()).add(source)
        if source is not None:
            self.followers.setdefault(source, set()).add(target)

    def only_feeder(self, name: str) -> str | None:
        """The one module that feeds this one in all its uses, or None."""
        return _single(self.feeders.get(name))

    def only_follower(self, name: str) -> str | None:
        """The one module that takes this one's output in all its uses, or None."""
        return _single(self.followers.get(name))


def _single(ends: Ends | None) -> str | None:
    return next(iter(ends)) if ends is not None and len(ends) == 1 else None


class WholeLayers(fx.Tracer):
    """Batch norm layers are whole, whoever wrote them; so are linear maps and what is parametrized."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is kept as one node."""
        whole = isinstance(m, _WHOLE) or nn.utils.parametrize.is_parametrized(m) or is_frozen_copy(m)
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """The graph of a model, which is left as it was; None where it cannot be traced."""
    # A trace runs the forward, which may count or keep what it meets; fx keeps constants on the model.
    with preserved(model):
        try:
            return WholeLayers().trace(model)
        except Exception:
            # Any model may fail in its own way under symbolic tracing.
            return None


_WHOLE = (
    _BatchNorm, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def is_frozen_copy(module: nn.Module) -> bool:
    """Whether a module is torchvision's or detectron2's `FrozenBatchNorm2d`: constants, and no subclass of torch's."""
    held = module._buffers.keys() >= {"weight", "bias", "running_mean", "running_var"}
    return held and type(module).__name__ == "FrozenBatchNorm2d" and hasattr(module, "eps")


def links(model: nn.Module) -> Links:
    """Which module feeds which in this model."""
    graph = trace(model)
    if graph is None:
        # What is certain without a trace is little.
        return _sequential_links(model)
    found = Links()
    for node in graph.nodes:
        target = node.target if node.op == "call_module" else None
        for source in node.all_input_nodes:
            found.add(source.target if source.op == "call_module" else None, target)
        if not node.users and target is not None:
            found.add(target, None)
    return found


def _sequential_links(model: nn.Module) -> Links:
    found = Links(complete=False)
    uses: dict[nn.Module, int] = {}
    for module in model.modules():
        for child in module.children():
            uses[child] = uses.get(child, 0) + 1
    names = {module: name for name, module in model.named_modules()}
    for parent in model.modules():
        if type(parent) is not nn.Sequential:
            continue
        children = list(parent)
        for first, second in pairwise(children):
            # A module with a second parent may have other neighbours there.
            if uses[first] == uses[second] == 1:
                found.add(names[first], names[second])
    return found


def linear_maps_before(model: nn.Module) -> dict[str, nn.Module]:
    """For each batch norm layer the convolution or linear layer that alone makes its input, where that is certain."""
    found, modules = links(model), dict(model.named_modules())
    maps: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if isinstance(module, _BatchNorm):
            feeder = found.only_feeder(name)
            before = modules.get(feeder) if feeder is not None else None
            if isinstance(before, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and _fits(before, module):
                maps[name] = before
    return maps


def _fits(before: nn.Module, layer: _BatchNorm) -> bool:
    # Not its weight, which may be parametrized and move when it is read.
    return getattr(before, "out_channels", getattr(before, "out_features", None)) == layer.num_features
