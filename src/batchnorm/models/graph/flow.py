"""How values flow from module to module, seeing through what does not change them: dropout, transposes, flattening."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.graph.moves import Step, module_step, node_step
from batchnorm.models.graph.trace import is_whole, trace


class Edge(NamedTuple):
    """A value goes from one module to another's first argument, through moves of axes.

    A source or target that is no such module is None, and what says in words what it is.
    """

    source: str | None
    target: str | None
    via: tuple[Step, ...]
    what: str


@dataclass
class Flow:
    """All edges of a model, and the modules whose parameters something reads past their forward."""

    edges: list[Edge] = field(default_factory=list[Edge])
    read: set[str] = field(default_factory=set[str])

    def into(self, name: str) -> list[Edge]:
        """What feeds a module."""
        return [edge for edge in self.edges if edge.target == name]

    def out_of(self, name: str) -> list[Edge]:
        """What takes a module's output."""
        return [edge for edge in self.edges if edge.source == name]

    def without(self, name: str) -> Flow:
        """The flow once this module only passes its input on."""
        inward, outward = self.into(name), self.out_of(name)
        joined = [
            Edge(a.source, b.target, a.via + b.via, b.what if b.target is None else a.what)
            for a in inward
            for b in outward
        ]
        rest = [edge for edge in self.edges if name not in (edge.source, edge.target)]
        return Flow(rest + joined, self.read)


def flow_of(model: nn.Module, recorded: Callable[[], fx.Graph | None] | None = None) -> Flow:
    """Trace the model; where that fails, record a run of it; else its parts, and the order inside `nn.Sequential`."""
    flow = Flow()
    names = {module: name for name, module in model.named_modules()}
    if is_whole(model):
        flow.edges += [Edge(None, "", (), "the input"), Edge("", None, (), "the output")]
        return flow
    graph = trace(model)
    if graph is None and recorded is not None:
        graph = recorded()
    if graph is not None:
        _add_graph(flow, graph, model, names, "")
        return flow
    uses: dict[nn.Module, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                uses[child] = uses.get(child, 0) + 1
    _add_parts(flow, model, names, uses)
    return flow


Names = dict[nn.Module, str]


def _add(flow: Flow, module: nn.Module, names: Names, uses: dict[nn.Module, int]) -> None:
    graph = trace(module)
    if graph is None:
        _add_parts(flow, module, names, uses)
        return
    # Only what nothing outside this part owns has no other neighbours.
    inside = {m: 0 for m in module.modules()}
    for owner in module.modules():
        for child in owner._modules.values():
            if child is not None:
                inside[child] += 1
    shared = [m for m in inside if m is not module and uses.get(m, 0) > inside[m]]
    flow.edges += [edge for m in shared for edge in _unknown(names[m])]
    _add_graph(flow, graph, module, names, names[module])


def _unknown(name: str) -> tuple[Edge, Edge]:
    return Edge(None, name, (), "another part of the model"), Edge(name, None, (), "another part of the model")


def _add_parts(flow: Flow, module: nn.Module, names: Names, uses: dict[nn.Module, int]) -> None:
    for child in module.children():
        if uses[child] == 1 and next(child.children(), None) is not None:
            _add(flow, child, names, uses)
    if type(module) is not nn.Sequential:
        return
    # A module with a second parent may have other neighbours there.
    chain = [(names[child], child) for child in module._modules.values() if child is not None]
    for first, second in pairwise(_visible(chain, uses)):
        if isinstance(first, str) and isinstance(second, tuple):
            flow.edges.append(Edge(first, second[0], second[1], "a module"))


def _visible(chain: list[tuple[str, nn.Module]], uses: dict[nn.Module, int]) -> list[Any]:
    """Pairs to join: a leaf's name, then (next leaf's name, moves between); None breaks the chain."""
    out: list[Any] = []
    via: tuple[Step, ...] = ()
    for name, child in chain:
        seen = module_step(child)
        if seen is not None:
            via += seen
        elif next(child.children(), None) is not None or uses[child] > 1:
            out.append(None)
            via = ()
        else:
            out += [(name, via), name]
            via = ()
    return out


def _add_graph(flow: Flow, graph: fx.Graph, part: nn.Module, names: Names, where: str) -> None:
    """The edges of a graph of this part of the model; modules go by their names in the whole."""
    known = dict(part.named_modules(remove_duplicate=False))
    origins: dict[fx.Node, tuple[str | None, tuple[Step, ...], str]] = {}
    for node in graph.nodes:
        moved = node_step(node, known)
        if moved is not None:
            name, via, what = origins[node.args[0]]
            origins[node] = name, via + moved, what
            continue
        own = names[known[str(node.target)]] if node.op == "call_module" else None
        origins[node] = own, (), _words(node, known, names, where)
        if node.op == "get_attr":
            owner = known.get(str(node.target).rpartition(".")[0])
            flow.read |= set() if owner is None else {names[owner]}
        for position, source in _value_inputs(node):
            name, via, what = origins[source]
            first = own is not None and position == 0
            target = own if first else None
            flow.edges.append(Edge(name, target, via, _words(node, known, names, where) if target is None else what))
            if own is not None and not first:
                flow.edges.append(Edge(None, own, (), "a second argument"))
    for node, (name, via, _) in origins.items():
        if name is not None and not via and not node.users:
            flow.edges.append(Edge(name, None, (), "nothing"))


def _words(node: fx.Node, known: dict[str, nn.Module], names: Names, where: str) -> str:
    """What a node is, for reasons."""
    if node.op == "call_module":
        module = known[str(node.target)]
        return f"{names[module]} ({type(module).__name__})"
    whose = f" of {where}" if where else ""
    if node.op == "placeholder":
        return f"the input{whose}"
    return f"the output{whose}" if node.op == "output" else str(getattr(node.target, "__name__", node.target))


def linear_maps_before(model: nn.Module) -> dict[str, nn.Module]:
    """For each batch norm layer the convolution or linear layer that alone makes its input, where that is certain."""
    flow, modules = flow_of(model), dict(model.named_modules())
    maps: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if isinstance(module, _BatchNorm):
            feeders = {edge.source if not edge.via else None for edge in flow.into(name)}
            feeder = feeders.pop() if len(feeders) == 1 else None
            before = modules.get(feeder) if feeder is not None else None
            if isinstance(before, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and _fits(before, module):
                maps[name] = before
    return maps


def _fits(before: nn.Module, layer: _BatchNorm) -> bool:
    # Not its weight, which may be parametrized and move when it is read.
    return getattr(before, "out_channels", getattr(before, "out_features", None)) == layer.num_features


_SHAPE_METHODS = ("size", "dim", "numel", "ndimension", "is_contiguous", "stride")
_SHAPE_FIELDS = ("shape", "dtype", "device", "ndim", "is_cuda")
_LIKE = ("reshape_as", "view_as", "expand_as", "type_as")


def _value_inputs(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """The inputs whose values a node uses, not only their shape, with their positions (-1 for those by name)."""
    if node.op == "call_method" and node.target in _SHAPE_METHODS:
        return []
    if node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_FIELDS:
        return []
    found: list[tuple[int, fx.Node]] = []
    for position, argument in enumerate(node.args):
        if node.op == "call_method" and node.target in _LIKE and position == 1:
            continue
        fx.map_arg(argument, lambda n, position=position: found.append((position, n)))
    fx.map_arg(node.kwargs, lambda n: found.append((-1, n)))
    return found
