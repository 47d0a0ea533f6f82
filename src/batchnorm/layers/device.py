"""A call on a CUDA device by Triton's kernels: one launch or three each way, and nothing is waited for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers.activation import finished, follows_residual
from batchnorm.layers.backends import ready_of
from batchnorm.layers.choices.situation import AfterReduction, Now
from batchnorm.layers.device_call import OTHERS, POPULATION, REFUSED, Call
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import joins, mixed
from batchnorm.layers.passing import Plan, Sharing
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import STORED, Move, Numbers, Vectors
from batchnorm.layers.step import run


class Whole(NamedTuple):
    """A call, its operands as the kernels read them, and what the layer does after it."""

    call: Call
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    # Activation and residual follow in torch.
    late: bool
    # What the choices were told, where the statistics are to move.
    moving: tuple[Any, Now] | None


def forward(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """The layer's output, activation and residual included, or None where the passes must serve."""
    whole = whole_call(layer, ready_of(layer), x, sample_weight, residual)
    if isinstance(whole, str):
        return None
    y = run(whole.x, whole.weight, whole.bias, whole.residual, whole.call)
    _finish(layer, whole)
    return finished(layer, y, residual, sample_weight) if whole.late else y


def whole_call(layer: Any, r: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Whole | str:
    """The call of a layer that `backends.Ready` has settled, or why there is none."""
    recipe, coupling, activation, tracks = r.recipe, r.coupling, layer.activation, r.tracks
    fuses = activation is not None or residual is not None
    if r.stored and not fuses:
        return "torch's kernel is as fast with stored statistics and nothing to fuse"
    why = triton.declined(x) or r.reason
    if why is not None:
        return why
    if layer.inplace and layer.training and not r.stored:
        return "the in-place form starts its backward from the output"
    if r.sync is not None and r.sync.size() > 1:
        return "the statistics are shared over processes"
    samples, n = x.shape[0], x.numel() // x.shape[1]
    groups = 1 if r.extent is None else r.extent.groups(samples)
    if not r.stored and samples // groups * (n // samples) == 1:
        return "a group has one value"
    if coupling.is_plain and groups == 1 and sample_weight is None and not fuses:
        return "torch's kernel is as fast for plain batch norm and nothing to fuse"
    if tracks and r.memory and coupling.reads_population and "_forward" in layer.__dict__:
        return "a forward that may run again keeps what its memory was"
    weight, bias = layer.affine_part("weight"), layer.affine_part("bias")
    statistics = statistics_of(layer, x) if r.stored or tracks else None
    if not readable(x, weight, bias, sample_weight) or (statistics is None and (r.stored or tracks)):
        return "weight, bias, mask, weights or running statistics cannot be read where they lie"
    late = fuses and sample_weight is not None
    if residual is not None:
        late = not joins(layer, residual, x, native.dense) or late or not follows_residual(activation)
    again = tracks and recomputing()
    moves = tracks and not (layer.paused or layer.accumulating or again)
    sharing = Sharing(groups, sample_weight, r.reliability, coupling.centres)
    few = _few_of(recipe, r, sample_weight)
    if few == POPULATION and again:
        return "the statistics that groups of one value met have moved since"
    state, now, move = None, Now(1.0, None, 0.0), Move()
    if statistics is not None and r.stored:
        mean, var = (v.to(torch.float64, copy=True) for v in statistics[:2])
        numbers, vectors = STORED, Vectors(mean, rest=var)
    else:
        if tracks:
            state, now = layer._situation(x.device, None, again)
            if r.memory:
                _ = state.mean, state.var, now.step  # as they are before they move
        now.values = n // groups if sample_weight is None and samples % groups == 0 else None
        try:
            numbers, vectors = coupling.plan(state, now)
            now = now if sample_weight is not None or groups == 1 else now.having(values=n)
            move = recipe.estimator.move(state, now) if moves else move
        except AfterReduction:
            return "its numbers take the batch's moments"
        if not in_numbers(numbers, vectors, move):
            return "its numbers are learned, or differ between groups"
    given, last = native.arranged(x)
    plan = Plan(lambda _: (numbers, vectors), layer.eps, r.detached or r.stored, sample_weight is not None)
    call = Call(layer, last, sharing, numbers, vectors, plan)
    call.activation, call.slope = None if late else activation, layer.negative_slope
    call.stored, call.few, call.statistics, call.moves = r.stored, few, statistics, moves
    call.memory = Memory(layer, now) if tracks and not coupling.exact else None
    call.prepare(move, x.device, sample_weight is not None and not r.stored and not r.reliability)
    if residual is not None and not late:
        residual = native.like(residual if residual.shape == x.shape else residual.expand_as(x), given)
    after = (state, now) if tracks and not (again or layer.paused) else None
    return Whole(call, given, weight, bias, None if late else residual, late, after)


def _finish(layer: Any, whole: Whole) -> None:
    """What the layer does once a call has run: what is not legal is raised, and what the choices keep is kept."""
    call, moving = whole.call, whole.moving
    entered = call.settle()
    if moving is None:
        return
    batch = call.batch()
    if not call.moves:
        layer._move(batch.pool(), moving[1], batch.has_several() if call.few != OTHERS else None)
    elif layer.memory_names:
        pooled = batch.pool()
        layer._write_memory(layer._kept(moving[0], moving[1].having(moments=pooled), pooled), entered)


def after_moments(
    layer: Any, x: Tensor, sharing: Sharing, plan: Plan, batch: Moments, memory: Any, move: Move | None
) -> Call | None:
    """The call that follows the moments, or None where the passes must serve; with a move the statistics move in it."""
    weight, bias = layer.affine_part("weight"), layer.affine_part("bias")
    if plan.for_few is not None or plan.statistics_of is not None or triton.declined(x) is not None:
        return None
    if not readable(x, weight, bias, sharing.weight):
        return None
    numbers, vectors = plan.numbers_of(batch)
    statistics = None if move is None else statistics_of(layer, x)
    if not in_numbers(numbers, vectors, move or Move()) or (move is not None and statistics is None):
        return None
    call = Call(layer, native.arranged(x)[1], sharing, numbers, vectors, plan)
    call.memory, call.statistics, call.moves = memory, statistics, move is not None
    values = x.new_empty(calls.ROWS * sharing.groups * x.shape[1], dtype=torch.float64)
    call.saved = calls.Saved(sharing.groups, x.shape[1], values)
    call.saved.take(batch.count, batch._squares(), batch.mean, batch.m2)
    call.prepare(move or Move(), x.device)
    return call


def _few_of(recipe: Any, r: Any, sample_weight: Tensor | None) -> int:
    if sample_weight is None or r.stored or r.coupling.takes_one_value:
        return OTHERS
    return POPULATION if r.tracks and recipe.policy.too_few == "population" else REFUSED


def in_numbers(numbers: Numbers, vectors: Vectors, move: Move) -> bool:
    """Whether each is one value, a number or a tensor, and nothing is learned."""
    every = [v for v in (*numbers, *move[:4]) if isinstance(v, Tensor)]
    learned = any(v.requires_grad for v in (*every, *(v for v in vectors if v is not None)))
    return not learned and all(v.numel() == 1 for v in every)


def readable(x: Tensor, weight: Tensor | None, bias: Tensor | None, sample_weight: Tensor | None) -> bool:
    """Whether weight and bias, of one value a channel, and a mask or weights lie in order beside x."""
    for v in (weight, bias):
        if v is None:
            continue
        if not native.dense(v) or v.device != x.device or v.numel() != x.shape[1]:
            return False
        if not v.is_contiguous() or mixed(v, x):
            return False
    return sample_weight is None or (type(sample_weight) is Tensor and sample_weight.device == x.device)


def statistics_of(layer: Any, x: Tensor) -> calls.Statistics | None:
    """The running statistics and counters, where they may be read and written where they lie."""
    mean, var, tracked = (layer.stat(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
    skipped = layer.num_batches_skipped
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    for v in (mean, var):
        if v is None or v.requires_grad or not native.dense(v) or v.numel() != x.shape[1] or not v.is_contiguous():
            return None
        if v.device != x.device or v.dtype is not dtype:
            return None
    if any(v is not None and (v.device != x.device or v.dtype is not torch.int64) for v in (tracked, skipped)):
        return None
    return calls.Statistics(mean, var, tracked, skipped)
