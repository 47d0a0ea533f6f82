"""How values flow from module to module, seeing through what does not change them: dropout, transposes, flattening."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from batchnorm.models.graph import trace

Step = tuple[Any, ...]


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


class Place(NamedTuple):
    """Where the channels are: an axis of a tensor of so many axes; blocked means each channel is a run of entries."""

    axis: int
    rank: int
    blocked: bool = False


def follow(via: tuple[Step, ...], place: Place) -> Place | None:
    """Where the channels come out, or None where they no longer lie along one axis."""
    for kind, *numbers in via:
        axis, rank, blocked = place
        if kind == "permute":
            if len(numbers) != rank:
                return None
            axis = [n % rank for n in numbers].index(axis)
        elif kind == "transpose":
            a, b = (n % rank for n in numbers)
            axis = b if axis == a else a if axis == b else axis
        else:
            first, last = (n % rank for n in numbers)
            if first < axis <= last:
                return None
            blocked = blocked or (axis == first < last)
            axis, rank = (axis - (last - first) if axis > last else axis), rank - (last - first)
        place = Place(axis, rank, blocked)
    return place


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
        seen = _module_step(child)
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
        moved = _step(node, known)
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


_SAME_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


def _module_step(module: nn.Module | None) -> tuple[Step, ...] | None:
    """The moves of a module that changes no value in eval, or None."""
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) in _SAME_MODULES:
        return ()
    return (("flatten", module.start_dim, module.end_dim),) if type(module) is nn.Flatten else None


def _step(node: fx.Node, known: dict[str, nn.Module]) -> tuple[Step, ...] | None:
    """The moves of a node that changes no value, or None."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        return _module_step(known.get(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _DROPOUTS:
        return () if node.kwargs.get("training", True) is False else None
    reader = _MOVES.get(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))
    plain = node.op == "call_method" or getattr(torch, str(getattr(node.target, "__name__", "")), None) is node.target
    return reader(node) if reader is not None and plain else None


def _integers(node: fx.Node, *names: str, default: tuple[Any, ...] = ()) -> list[int] | None:
    rest = node.args[1:]
    if len(rest) == 1 and isinstance(rest[0], list | tuple):
        rest = rest[0]
    values = list(rest) or [node.kwargs.get(n, d) for n, d in zip(names, default, strict=True)]
    ok = values and all(isinstance(v, int) for v in values)
    return [operator.index(v) for v in values] if ok else None  # pyright: ignore[reportArgumentType]


def _permute(node: fx.Node) -> tuple[Step, ...] | None:
    dims = _integers(node)
    return None if dims is None else (("permute", *dims),)


def _transpose(node: fx.Node) -> tuple[Step, ...] | None:
    dims = _integers(node)
    return (("transpose", *dims),) if dims is not None and len(dims) == 2 else None


def _flatten(node: fx.Node) -> tuple[Step, ...] | None:
    dims = _integers(node, "start_dim", "end_dim", default=(0, -1))
    if dims is None or (node.kwargs and node.args[1:]):
        return None
    return (("flatten", *dims, *[-1][: 2 - len(dims)]),)


_MOVES: dict[str, Callable[[fx.Node], tuple[Step, ...] | None]] = {
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "flatten": _flatten,
    "contiguous": lambda node: (),
    "clone": lambda node: (),
}
