"""The fused calls as operators that a compiler can put in its graph: nothing is written in place.

Annotations are read at import to make the operators' schemas, so they are not postponed here.
"""

from typing import Any, Sequence  # noqa: UP035  (torch 2.5 reads no other)

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import calls, native


def _spec(numbers: Tensor, flags: Sequence[int]) -> Any:
    """As `calls.spec` takes it: mean, share, spread, low, high, shift; gain, q, p, r; eps, slope; and the flags."""
    mean, share, spread, low, high, shift, gain, q, p, r, eps, slope = numbers.tolist()
    log, quiet, root, correction, centred, activation, reliability, nonfinite = flags
    plan = mean, share, spread, bool(log), low, high, bool(quiet), shift
    move = gain, q, p, r, bool(root), correction
    return calls.spec(*plan, *move, eps, bool(centred), False, activation, slope, bool(reliability), nonfinite)


def _dense(x: Tensor) -> Tensor:
    """Room for the output in the strides that the operator gives it."""
    return native.blank(native.arranged(x)[0])


@torch.library.custom_op("batchnorm::train", mutates_args=(), device_types="cpu")
def train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pm: Tensor | None,
    pv: Tensor | None,
    rest: Tensor | None,
    from_mean: Tensor | None,
    from_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    tracked: Tensor,
    skipped: Tensor,
    numbers: Tensor,
    flags: Sequence[int],
    groups: int,
    moves: bool,
    detached: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, the rows of channel vectors, and the running statistics and counters as they become."""
    x, last = native.arranged(x)
    to = calls.Statistics(mean.clone(), var.clone(), tracked.clone(), skipped.clone())
    residual = None if residual is None else native.like(residual.expand_as(x), x)
    given = weight, bias, pm, pv, rest, from_mean, from_var
    weight, bias, *lying = (None if v is None else v.contiguous() for v in given)
    spec, vectors = _spec(numbers, flags), calls.Vectors(*lying)
    native.require_channels(x, weight=weight, bias=bias, mean=to.mean, var=to.var, **vectors._asdict())
    y, saved, _ = calls.forward(spec, x, last, groups, weight, bias, residual, None, vectors, to, moves)
    return y, saved.values, to.mean, to.var, to.tracked, to.skipped  # pyright: ignore[reportReturnType]


@train.register_fake
def _(x, weight, bias, residual, pm, pv, rest, from_mean, from_var, *others):
    *statistics, _, _, groups, _, _ = others
    kept = tuple(torch.empty_like(v) for v in statistics)
    return _dense(x), x.new_empty(calls.size(groups, x.shape[1]), dtype=torch.float64), *kept


@torch.library.custom_op("batchnorm::train_backward", mutates_args=(), device_types="cpu")
def train_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    numbers: Tensor,
    flags: Sequence[int],
    detached: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and the residual; empty where there is none."""
    x, last = native.arranged(x)
    y = None if y is None else native.like(y.expand_as(x), x)
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    native.require_channels(x, weight=weight, bias=bias)
    if saved.numel() != calls.size(groups, x.shape[1]):
        raise OperandError(f"saved must hold {calls.size(groups, x.shape[1])} values; it held {saved.numel()}")
    rows = calls.Saved(groups, x.shape[1], saved)
    source = calls.RECOMPUTE if y is None else calls.OUTPUT
    wants = (True, weight is not None, bias is not None)
    spec, pull = _spec(numbers, flags), calls.Pull() if detached else None
    found = calls.backward(
        spec, native.like(g.expand_as(x), x), x, y, last, weight, bias, None, rows, source, wants, pull
    )
    return tuple(g.new_empty(0) if v is None else v for v in found[:4])  # pyright: ignore[reportReturnType]


@train_backward.register_fake
def _(g, x, y, weight, bias, saved, numbers, flags, detached, groups):
    dw, db = (g.new_empty(0) if v is None else torch.empty_like(v) for v in (weight, bias))
    return _dense(x), dw, db, g.new_empty(0) if y is None else _dense(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    x, weight, bias, residual, *_, numbers, ctx.flags, ctx.groups, _, ctx.detached = inputs
    activated = ctx.flags[5] != 0
    ctx.residual = residual is not None
    y = output[0] if ctx.residual and activated else None
    ctx.save_for_backward(x, weight, bias, y, output[1], numbers)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing = (None,) * 14
    if g is None:
        return None, None, None, None, *nothing
    x, weight, bias, y, saved, numbers = ctx.saved_tensors
    dx, dw, db, dr = train_backward(g, x, y, weight, bias, saved, numbers, ctx.flags, ctx.detached, ctx.groups)
    of_residual = None if not ctx.residual else g if y is None else dr
    return dx, None if weight is None else dw, None if bias is None else db, of_residual, *nothing


train.register_autograd(_pull, setup_context=_keep)
