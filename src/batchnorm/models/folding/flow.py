"""How values flow from module to module, seeing through what does not change them: dropout, transposes, flattening."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from torch import fx, nn

from batchnorm.models.folding.moves import Step, module_step, node_step
from batchnorm.models.graph import trace


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


def flow_of(model: nn.Module) -> Flow:
    """Trace the model; where it cannot be traced, its parts, and the order inside `nn.Sequential`."""
    flow = Flow()
    uses: dict[nn.Module, int] = {}
    for module in model.modules():
        for child in module._modules.values():
            if child is not None:
                uses[child] = uses.get(child, 0) + 1
    _add(flow, model, "", uses)
    return flow


def _add(flow: Flow, module: nn.Module, prefix: str, uses: dict[nn.Module, int]) -> None:
    graph = trace(module)
    if graph is None:
        _add_parts(flow, module, prefix, uses)
        return
    known = dict(module.named_modules())
    if prefix:
        # Only what nothing outside this part owns has no other neighbours.
        inside = {m: 0 for m in known.values()}
        for owner in known.values():
            for child in owner._modules.values():
                if child is not None:
                    inside[child] += 1
        shared = {prefix + name for name, m in known.items() if name and uses.get(m, 0) > inside[m]}
        flow.edges += [edge for name in shared for edge in _unknown(name)]
    _add_graph(flow, graph, known, prefix)


def _unknown(name: str) -> tuple[Edge, Edge]:
    return Edge(None, name, (), "another part of the model"), Edge(name, None, (), "another part of the model")


def _add_parts(flow: Flow, module: nn.Module, prefix: str, uses: dict[nn.Module, int]) -> None:
    for name, child in module.named_children():
        if uses[child] == 1 and next(child.children(), None) is not None:
            _add(flow, child, f"{prefix}{name}.", uses)
    if type(module) is not nn.Sequential:
        return
    # A module with a second parent may have other neighbours there.
    chain = [(f"{prefix}{name}", child) for name, child in module._modules.items() if child is not None]
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


def _add_graph(flow: Flow, graph: fx.Graph, known: dict[str, nn.Module], prefix: str) -> None:
    origins: dict[fx.Node, tuple[str | None, tuple[Step, ...], str]] = {}
    for node in graph.nodes:
        moved = node_step(node, known)
        if moved is not None:
            name, via, what = origins[node.args[0]]
            origins[node] = name, via + moved, what
            continue
        own = str(node.target) if node.op == "call_module" else None
        origins[node] = (None if own is None else prefix + own), (), _words(node, known)
        if node.op == "get_attr":
            flow.read.add(prefix + str(node.target).rpartition(".")[0])
        for position, source in _value_inputs(node):
            name, via, what = origins[source]
            first = own is not None and position == 0
            target = prefix + own if first and own is not None else None
            flow.edges.append(Edge(name, target, via, _words(node, known) if target is None else what))
            if own is not None and not first:
                flow.edges.append(Edge(None, prefix + own, (), "a second argument"))
    for node, (name, via, _) in origins.items():
        if name is not None and not via and not node.users:
            flow.edges.append(Edge(name, None, (), "nothing"))


def _words(node: fx.Node, known: dict[str, nn.Module]) -> str:
    """What a node is, for reasons."""
    if node.op == "call_module":
        return f"{node.target} ({type(known.get(str(node.target))).__name__})"
    if node.op == "placeholder":
        return "the input"
    return "the output" if node.op == "output" else str(getattr(node.target, "__name__", node.target))


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
