"""Operations that treat every channel alike and keep constants: where the channels lie after them.

Such are moves of axes, and averages over positions whose weights sum to one: a scale and a shift per channel come
out of them as they went in.
"""

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
        elif kind == "positions":
            if axis >= rank - numbers[0]:
                return None
        elif kind == "average":
            if axis in {n % rank for n in numbers}:
                return None
        elif kind == "resize":
            if axis != 1 or rank < 3:
                return None
        elif kind == "unsqueeze":
            rank += 1
            axis += numbers[0] % rank <= axis
        elif kind == "squeeze":
            gone = {n % rank for n in numbers}
            if axis in gone:
                return None
            axis, rank = axis - sum(n < axis for n in gone), rank - len(gone)
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
    if type(module) in _POSITIONS:
        return (("positions", _POSITIONS[type(module)]),)
    if type(module) in _POOLS:
        divisor = getattr(module, "divisor_override", None)
        return (("positions", _POOLS[type(module)]),) if _averages(module.padding, module.ceil_mode, divisor) else None
    if type(module) in _UPSAMPLING:
        return (("resize",),)
    return (("flatten", module.start_dim, module.end_dim),) if type(module) is nn.Flatten else None


def _averages(padding: Any, ceil: Any, divisor: Any) -> bool:
    """Whether a pooling divides by what it adds up, at the borders too."""
    return padding in (0, (0,), (0, 0), (0, 0, 0), [0], [0, 0], [0, 0, 0]) and not ceil and divisor is None


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
    name = str(getattr(node.target, "__name__", ""))
    plain = node.op == "call_method" or any(getattr(home, name, None) is node.target for home in (torch, functional))
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


def _squeeze(node: fx.Node) -> tuple[Step, ...] | None:
    # Without axes it depends on the sizes.
    dims = _integers(node, "dim", default=(None,))
    return None if dims is None else (("squeeze", *dims),)


def _unsqueeze(node: fx.Node) -> tuple[Step, ...] | None:
    dims = _integers(node, "dim", default=(None,))
    return None if dims is None else (("unsqueeze", *dims),)


def _mean(node: fx.Node) -> tuple[Step, ...] | None:
    given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    dims = [given["dim"]] if isinstance(given.get("dim"), int) else given.get("dim")
    if not isinstance(dims, list | tuple) or not dims or given.get("keepdim") not in (None, False, True):
        return None
    return (("average" if given.get("keepdim") else "squeeze", *dims),)  # pyright: ignore[reportGeneralTypeIssues]


def _pad(node: fx.Node) -> tuple[Step, ...] | None:
    given = dict(zip(("pad", "mode"), node.args[1:], strict=False)) | node.kwargs
    if given.get("mode", "constant") == "constant" or not isinstance(given.get("pad"), list | tuple):
        return None
    return (("positions", len(given["pad"]) // 2),)  # pyright: ignore[reportArgumentType]


def _pool(axes: int) -> Callable[[fx.Node], tuple[Step, ...] | None]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

    def read(node: fx.Node) -> tuple[Step, ...] | None:
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        fine = _averages(given.get("padding", 0), given.get("ceil_mode"), given.get("divisor_override"))
        return (("positions", axes),) if fine else None

    return read


_POSITIONS: dict[type[nn.Module], int] = {
    nn.ReflectionPad1d: 1, nn.ReflectionPad2d: 2, nn.ReflectionPad3d: 3, nn.ReplicationPad1d: 1, nn.ReplicationPad2d: 2,
    nn.ReplicationPad3d: 3, nn.CircularPad1d: 1, nn.CircularPad2d: 2, nn.CircularPad3d: 3, nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3,
}  # fmt: skip
_POOLS: dict[type[nn.Module], int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
_UPSAMPLING = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
_MOVES: dict[str, Callable[[fx.Node], tuple[Step, ...] | None]] = {
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "flatten": _flatten,
    "mean": _mean,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "pad": _pad,
    "interpolate": lambda node: (("resize",),),
    "adaptive_avg_pool1d": lambda node: (("positions", 1),),
    "adaptive_avg_pool2d": lambda node: (("positions", 2),),
    "adaptive_avg_pool3d": lambda node: (("positions", 3),),
    "avg_pool1d": _pool(1),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "contiguous": lambda node: (),
    "clone": lambda node: (),
}
