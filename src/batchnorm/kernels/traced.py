"""The fused calls as operators that a compiler can put in its graph: nothing is written in place.

Annotations are read at import to make the operators' schemas, so they are not postponed here.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import native, slab

# A layer's choices as two lists, which a graph can hold; the words are those of `slab`.
_INTS = (
    "coupling",
    "schedule",
    "detached",
    "activation",
    "gain",
    "sigma",
    "total",
    "correction",
    "reliability",
    "nonfinite",
)
_FLOATS = ("eps", "r_max", "d_max", "slope", "momentum", "power")
_WORDS: dict[str, tuple[Any, ...]] = {
    "coupling": slab.COUPLINGS,
    "schedule": slab.SCHEDULES,
    "activation": slab.ACTIVATIONS,
    "gain": slab.GAINS,
    "nonfinite": slab.NONFINITE,
}
_DEFAULTS: dict[str, Any] = {
    "schedule": None, "detached": False, "activation": None, "sigma": False, "total": False, "r_max": 1.0, "d_max": 0.0,
    "slope": 0.0, "gain": "constant", "momentum": 0.0, "power": 1.0, "correction": 1,
}  # fmt: skip


def listed(choices: dict[str, Any]) -> tuple[list[int], list[float]]:
    """What `slab.spec` takes, as numbers."""
    full = {**_DEFAULTS, **choices}
    ints = [_WORDS[name].index(full[name]) if name in _WORDS else int(full[name]) for name in _INTS]
    return ints, [float(full[name]) for name in _FLOATS]


@lru_cache(maxsize=4096)
def _spec(ints: tuple[int, ...], floats: tuple[float, ...]) -> Any:
    choices: dict[str, Any] = dict(zip(_FLOATS, floats, strict=True))
    for name, value in zip(_INTS, ints, strict=True):
        flag = name in ("detached", "sigma", "total", "reliability")
        choices[name] = _WORDS[name][value] if name in _WORDS else bool(value) if flag else value
    return slab.spec(**choices)


def _dense(x: Tensor) -> Tensor:
    """Room for the output in the strides that the operator gives it."""
    return native.blank(native.arranged(x)[0])


@torch.library.custom_op("batchnorm::train", mutates_args=(), device_types="cpu")
def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    tracked: Tensor,
    skipped: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    groups: int,
    moves: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the rows of channel vectors, and the running statistics and counters as they become."""
    x, last = native.arranged(x)
    to = slab.Statistics(mean.clone(), var.clone(), tracked.clone(), skipped.clone())
    residual = None if residual is None else native.like(residual.expand_as(x), x)
    spec = _spec(tuple(ints), tuple(floats))
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    native.require_channels(x, weight=weight, bias=bias, mean=to.mean, var=to.var)
    y, saved, _ = slab.forward(spec, x, last, groups, weight, bias, residual, None, to, moves)
    return y, saved.values, to.mean, to.var, to.tracked, to.skipped  # pyright: ignore[reportReturnType]


@train.register_fake
def _(x, weight, bias, residual, mean, var, tracked, skipped, ints, floats, groups, moves):
    kept = tuple(torch.empty_like(v) for v in (mean, var, tracked, skipped))
    return _dense(x), x.new_empty(slab.size(groups, x.shape[1]), dtype=torch.float64), *kept


@torch.library.custom_op("batchnorm::train_backward", mutates_args=(), device_types="cpu")
def train_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and the residual; empty where there is none."""
    x, last = native.arranged(x)
    y = None if y is None else native.like(y.expand_as(x), x)
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    native.require_channels(x, weight=weight, bias=bias)
    if saved.numel() != slab.size(groups, x.shape[1]):
        raise OperandError(f"saved must hold {slab.size(groups, x.shape[1])} values; it held {saved.numel()}")
    rows = slab.Saved(groups, x.shape[1], saved)
    source = slab.RECOMPUTE if y is None else slab.OUTPUT
    wants = (True, weight is not None, bias is not None)
    spec = _spec(tuple(ints), tuple(floats))
    found = slab.backward(spec, native.like(g.expand_as(x), x), x, y, last, weight, bias, None, rows, source, wants)
    return tuple(g.new_empty(0) if v is None else v for v in found)  # pyright: ignore[reportReturnType]


@train_backward.register_fake
def _(g, x, y, weight, bias, saved, ints, floats, groups):
    dw, db = (g.new_empty(0) if v is None else torch.empty_like(v) for v in (weight, bias))
    return _dense(x), dw, db, g.new_empty(0) if y is None else _dense(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, weight, bias, residual, _, _, _, _, ctx.ints, ctx.floats, ctx.groups, _ = inputs
    activated = ctx.ints[_INTS.index("activation")] != 0
    ctx.residual = residual is not None
    ctx.save_for_backward(x, weight, bias, output[0] if ctx.residual and activated else None, output[1])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing = (None,) * 8
    if g is None:
        return None, None, None, None, *nothing
    x, weight, bias, y, saved = ctx.saved_tensors
    dx, dw, db, dr = train_backward(g, x, y, weight, bias, saved, ctx.ints, ctx.floats, ctx.groups)
    of_residual = None if not ctx.residual else g if y is None else dr
    return dx, None if weight is None else dw, None if bias is None else db, of_residual, *nothing


train.register_autograd(_pull, setup_context=_keep)
