"""The layer's fast path: one native call forward, one backward, where the choices and the tensors allow it.

Everything here has a slower spelling in `module` and `normalise`, which serves whatever this
declines by returning None, and which the tests compare it with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.kernels import native, reference, slab
from batchnorm.layers import rule
from batchnorm.layers.activation import activate
from batchnorm.layers.choices.inference import Stored
from batchnorm.layers.choices.situation import Now, State, resolve
from batchnorm.layers.moments import Moments
from batchnorm.layers.movement import require_invertible
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import (
    affine_of,
    joins,
    require_unchanged,
    selects,
    statistics_of,
    usable,
)
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.remembered import Remembered
from batchnorm.layers.statistics import NARROW
from batchnorm.layers.step import Plan, Sharing, spelled
from batchnorm.layers.ways import Way, groups_of, way_of

if TYPE_CHECKING:
    from batchnorm.layers.module import BatchNorm

# Values from which a frozen layer's native backward outweighs the cost of calling it.
_WORTHWHILE = 1 << 19


def forward(layer: BatchNorm, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """The layer's output, activation and residual included, or None where the slower spelling must serve."""
    if torch.compiler.is_compiling():
        return None
    buffers = layer._buffers
    stored = (layer.frozen or not layer.training) and buffers["running_mean"] is not None
    alone = layer.activation is None and residual is None
    if stored and alone and (x.numel() < _WORTHWHILE or not torch.is_grad_enabled()):
        # torch's kernel has nothing to measure here; only its backward over large tensors is slow.
        return None
    if not native.serves(x):
        return None
    tracks = not stored and layer.training and layer.track_running_stats and buffers["running_mean"] is not None
    recipe = layer.recipe
    if recipe.coupling.finishes is not None:
        return None
    if stored:
        if type(recipe.inference) is not Stored:
            return None
        groups = 1
    else:
        groups = groups_of(layer, x, tracks)
        if groups == 0:
            return None
    activation = layer.activation
    inplace = layer.inplace and layer.training and not stored
    if inplace and (residual is not None or sample_weight is not None):
        return None
    together = residual is None or joins(layer, residual, x)
    # Activation and residual follow in torch.
    late = not together or (sample_weight is not None and (activation is not None or residual is not None))
    way = way_of(layer, "stored" if stored else "tracks" if tracks else "alone", None if late else activation)
    if way is None:
        return None
    weight, bias = affine_of(layer)
    if not usable(weight, bias, x) or not (sample_weight is None or selects(sample_weight)):
        return None
    statistics = None
    if stored or tracks:
        statistics = statistics_of(layer, x)
        if statistics is None:
            return None
    if inplace and weight is not None:
        require_invertible(weight, layer)
    again = tracks and recomputing()
    remembered, places = None, slab.NOTHING
    if way.kept is not None:
        if way.kept.normalises and "_forward" in layer.__dict__:
            # Where a forward may run again, a record keeps what it met; the slower spelling has one.
            return None
        remembered = Remembered(layer, way.kept, x.shape[1])
        places = remembered.places()
        if places is None:
            return None
    moves = tracks and way.estimator_is_native and not (layer.paused or layer.accumulating or again)
    x, last = native.arranged(x)
    reads = tracks and way.coupling.reads_population
    if again and reads:
        statistics = _as_met(layer, statistics)
    call = _Call(layer, way, last, groups, sample_weight, statistics, moves, inplace, remembered)
    joined = None
    if residual is not None and not late:
        joined = native.like(residual if residual.shape == x.shape else residual.expand_as(x), x)
    if torch.is_grad_enabled():
        y: Any = Fused.apply(x, weight, bias, joined, call, places)
    else:
        y = _run(call, x, weight, bias, joined, places)
    saved, status = call.saved, call.status
    if status:
        if status == slab.TOO_FEW:
            return None
        if status == slab.NOT_FINITE:
            raise BatchNormError(f"batch statistics must be finite: {describe(layer)}")
    if tracks and not again:
        if reads:
            _remember(layer, saved)
        if not (moves or layer.paused):
            layer._move(_pooled(saved, recipe.policy.weights == "reliability"))
    if not late:
        return y
    y = activate(y, activation, layer.negative_slope, residual)
    return y if residual is None or sample_weight is None else torch.where(sample_weight != 0, y, 0)


def unweighted(layer: BatchNorm) -> bool:
    """Whether there is no enclosing `masked()` context and the extent requires no mask or weights."""
    return "_given" not in layer.__dict__ and layer.recipe.extent.requires is None


def _pooled(saved: slab.Saved, reliability: bool) -> Moments:
    return Moments(saved.row(0), saved.row(2), saved.row(3), saved.row(1), reliability).pool()


def _as_met(layer: BatchNorm, now: Any) -> slab.Statistics:
    """A recomputed forward meets the statistics of its first."""
    first = layer.__dict__.get("_forward")
    found = None if first is None else first.situation()
    if found is None:
        return now
    state, then = found
    mean, var = (v.to(torch.float64).contiguous() for v in (state.mean, state.var))
    return slab.Statistics(mean, var, (then.step - 1).to(torch.int64), None)


def _remember(layer: BatchNorm, saved: slab.Saved) -> None:
    """What this forward met, where it may run again: views of what backward keeps, which nothing writes to."""
    forward = layer.__dict__.get("_forward")
    if forward is None:
        return
    mean, var, step = saved.met
    momentum = resolve(layer.momentum, step.to(torch.int64)) if callable(layer.momentum) else layer.momentum
    forward.met(State(mean, var), Now(step, momentum, layer.eps))


class _Call:
    """One forward: what to do, and in `saved` and `status` what came of it."""

    __slots__ = (
        "groups", "inplace", "last", "layer", "moves", "remembered", "sample_weight", "saved", "statistics", "status",
        "way",
    )  # fmt: skip

    def __init__(
        self,
        layer: BatchNorm,
        way: Way,
        last: bool,
        groups: int,
        sample_weight: Tensor | None,
        statistics: slab.Statistics | None,
        moves: bool,
        inplace: bool,
        remembered: Any,
    ) -> None:
        self.layer, self.remembered = layer, remembered
        self.way, self.last, self.groups, self.sample_weight = way, last, groups, sample_weight
        self.statistics, self.moves, self.inplace = statistics, moves, inplace


def _run(call: _Call, x: Tensor, weight: Any, bias: Any, residual: Any, places: Any) -> Tensor:
    way, y = call.way, None
    held = call.statistics
    if way.stored and held is not None and way.activation is None and residual is None and call.sample_weight is None:
        # torch's own output, to the last bit: `to_stock` promises it, and only its backward is slow.
        dtype = held.mean.dtype
        weight_wide, bias_wide = (v if v is None or v.dtype not in NARROW else v.to(dtype) for v in (weight, bias))
        nothing = torch.empty(2, 0, dtype=dtype if x.dtype in NARROW else x.dtype, device="cpu").unbind(0)
        y = native.blank(x)
        stored = (held.mean, held.var, False, 0.0, way.eps)
        torch.native_batch_norm(x, weight_wide, bias_wide, *stored, out=(y, *nothing))
    y, saved, status = slab.forward(
        way.spec, x, call.last, call.groups, weight, bias, residual, call.sample_weight, call.statistics, call.moves, y,
        places,
    )  # fmt: skip
    call.saved, call.status = saved, status
    return y


class Fused(torch.autograd.Function):
    """The native forward and its backward; second derivatives go through the spelled forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, residual: Any, call: _Call, places: Any) -> Tensor:
        """Keep x, or the output alone in the in-place form, or both where the activation saw a residual."""
        y = _run(call, x, weight, bias, residual, places)
        keeps_y = call.inplace or (residual is not None and call.way.activation is not None)
        ctx.save_for_backward(None if call.inplace else x, weight, bias, y if keeps_y else None, call.sample_weight)
        ctx.call, ctx.residual = call, residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """One native call, unless something watches."""
        (g,) = grads
        x, weight, bias, y, sample_weight = ctx.saved_tensors
        call, needs = ctx.call, ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_respelled(ctx, g, x, weight, bias, y), None, None
        pattern = x if x is not None else y
        places = _readable(call, g, pattern, weight, bias)
        if places is None:
            return *_in_torch(ctx, g, x, weight, bias, y, sample_weight), None, None
        source = slab.INVERT if call.inplace else slab.OUTPUT if y is not None else slab.RECOMPUTE
        dx, dw, db, dr = slab.backward(
            call.way.spec, native.like(g, pattern), x, y, call.last, weight, bias, sample_weight, call.saved, source,
            (needs[0], weight is not None and needs[1], bias is not None and needs[2]), places, call.moves,
        )  # fmt: skip
        if ctx.residual and needs[3] and dr is None:
            dr = g
        return dx if needs[0] else None, dw, db, dr if needs[3] else None, None, None


def _readable(call: _Call, g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> slab.Remembered | None:
    """The layer's memory, where a kernel may read all that the forward left; owners may have moved it since.

    Raises:
        OperandError: a tensor of another size than in the forward.
    """
    channels = call.saved.channels
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.numel() != channels:
            require_unchanged(call.layer, name, t, torch.Size((channels,)))
    if not (native.unwatched() and native.plain(g) and native.plain(x)):
        return None
    require_unchanged(call.layer, "input", x, g.shape)
    if not (usable(weight, bias, x) and native.laid_out(x, call.last)):
        return None
    kept = call.way.kept
    return slab.NOTHING if kept is None or not kept.normalises else call.remembered.places()


def _respelled(ctx: Any, g: Tensor, x: Any, weight: Any, bias: Any, y: Any) -> tuple[Tensor | None, ...]:
    """The gradient with a graph of its own, through operations."""
    call, needs = ctx.call, ctx.needs_input_grad
    if call.inplace:
        raise BatchNormError("create_graph must be False with inplace=True, which keeps its output alone; it was True")
    if not call.way.coupling.exact:
        raise BatchNormError(
            "create_graph must be False for a coupling whose backward uses running averages; it was True"
        )
    found = [t for t, needed in zip((x, weight, bias), needs, strict=False) if needed]
    plain = _spelled(call, call.saved, x, weight, bias)
    g = _gated(call, g, plain.detach() if y is None else y)
    grads = iter(torch.autograd.grad(plain, found, g, create_graph=True)) if found else iter(())
    dx, dw, db = (next(grads) if needed else None for needed in needs[:3])
    return dx, dw, db, g if ctx.residual and needs[3] else None


def _gated(call: _Call, g: Tensor, y: Tensor) -> Tensor:
    if call.way.activation is None:
        return g
    # By what is stored, and for NaN, as torch's backward does.
    return (
        torch.where(y > 0, g, g * call.way.slope)
        if call.way.activation == "leaky_relu"
        else torch.where(y <= 0, 0.0, g)
    )


def _spelled(call: _Call, saved: slab.Saved, x: Tensor, weight: Any, bias: Any) -> Tensor:
    """The output before residual and activation, in operations."""
    recipe, coupling = call.way.recipe, call.way.coupling
    mean, var, step = saved.met
    if call.way.stored:
        invstd = torch.rsqrt(var + call.way.eps)[None]
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        shift = torch.zeros_like(invstd) if bias is None else bias.to(invstd.dtype)[None]
        return reference.apply(x, mean[None], scale, shift, call.sample_weight)
    sharing = Sharing(call.groups, call.sample_weight, recipe.policy.weights == "reliability", coupling.centres)

    now = Now(step, resolve(call.way.momentum, step), call.way.eps, recipe.estimator)
    plan = Plan(lambda found: coupling.plan(State(mean, var), replace(now, moments=found)), now.eps, coupling.detached)
    return spelled(x, weight, bias, plan, sharing)


def _in_torch(ctx: Any, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, w: Any) -> tuple[Tensor | None, ...]:
    """The same backward by the reference passes, where g is no plain tensor (vmap over gradients, a mode)."""
    call, needs = ctx.call, ctx.needs_input_grad
    saved, exact = call.saved, call.way.coupling.exact
    n, share, invstd, step = rule.or_one(saved.row(0)), saved.row(7), saved.row(5), saved.met[2]
    own_v = share * n if exact else 1.0
    own_u = own_v if call.way.coupling.centres else 0.0
    var = 1 / invstd.square() - call.way.eps
    ratio, follow, offset = saved.row(8), None if exact else share, saved.row(9)
    rows = rule.Rows(n, saved.row(4), var, invstd, saved.row(6), own_u, own_v, ratio, follow, offset)
    mean, unit = rows.mean, invstd
    if call.inplace:
        gamma = torch.ones_like(invstd) if weight is None else weight.to(invstd.dtype).expand_as(invstd)
        mean = torch.zeros_like(invstd) if bias is None else bias.to(invstd.dtype).expand_as(invstd)
        x, unit = torch.where(y <= 0, y / call.way.slope, y), 1 / gamma
    elif y is None:
        y = reference.apply(x, mean, saved.row(10), saved.row(11), w) if call.way.activation else g
    g = _gated(call, g, y)
    sum_g, sum_gx = reference.backward_reduce(g, x, mean, unit, w)
    given = None if exact else _pulled(call, rows, weight, sum_g, sum_gx, step)
    scale, u, v = rule.pull(rows, weight, sum_g, sum_gx, given)
    v = v if not call.inplace else v / invstd * unit
    centre = mean if call.inplace else rows.centre
    dx = reference.backward_apply(g, x, centre, scale, u, v, w, True) if needs[0] else None
    dw, db = rule.parameters(rows, sum_g, sum_gx)
    dw = dw.to(weight.dtype) if weight is not None and needs[1] else None
    db = db.to(bias.dtype) if bias is not None and needs[2] else None
    return dx, dw, db, g if ctx.residual and needs[3] else None


def _pulled(call: _Call, rows: rule.Rows, weight: Any, sum_g: Tensor, sum_gx: Tensor, step: Tensor) -> Any:
    """What takes the derivative's place, in torch."""
    saved, way = call.saved, call.way
    batch = Moments(saved.row(0), saved.row(2), saved.row(3), saved.row(1))
    sums = rule.told(rows, batch, weight, sum_g, sum_gx)
    buffers = {} if call.remembered is None else call.remembered.buffers()
    memory = {name: buffer.to(sum_g.dtype) if buffer.is_floating_point() else buffer.clone()
              for name, buffer in buffers.items()}  # fmt: skip
    state = State(saved.met[0], saved.met[1], memory)
    now, numbers = Now(step.abs(), None, way.eps), rule.UNCENTRED._replace(share=torch.where(step > 0, 0.5, 1.0))
    pull = way.coupling.pull(state, now, numbers, sums)
    if call.moves:
        new = way.coupling.learn(state, now, numbers, sums, pull)
        ok = torch.isfinite(sum_g).all() & torch.isfinite(sum_gx).all() & (batch.count > 0).any()
        for name, value in new.items():
            buffer = buffers[name]
            buffer.copy_(torch.where(ok, value, buffer))
    return pull
