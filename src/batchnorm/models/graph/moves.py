"""Operations that only move values: which axis channels lie on after transposes and flattening."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

Step = tuple[Any, ...]


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


_SAME_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)


def module_step(module: nn.Module | None) -> tuple[Step, ...] | None:
    """The moves of a module that changes no value in eval, or None."""
    if module is None or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) in _SAME_MODULES:
        return ()
    return (("flatten", module.start_dim, module.end_dim),) if type(module) is nn.Flatten else None


def node_step(node: fx.Node, known: dict[str, nn.Module]) -> tuple[Step, ...] | None:
    """The moves of a node that changes no value, or None."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        return module_step(known.get(str(node.target)))
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
