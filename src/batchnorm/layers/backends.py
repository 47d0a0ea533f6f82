"""Which backend serves a call of a layer: one native call where choices and tensors allow it, or why not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.kernels import calls, native, triton
from batchnorm.layers import device
from batchnorm.layers.activation import activate, follows_residual
from batchnorm.layers.choices.situation import AfterReduction, Now
from batchnorm.layers.memory import Memory
from batchnorm.layers.movement import require_invertible
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import affine_of, joins, selects, statistics_of, usable
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import STORED, Move, Numbers, Vectors
from batchnorm.layers.statistics import Copied
from batchnorm.layers.step import Native, Plan, Sharing, run

# Values from which a frozen layer's native backward outweighs the cost of calling it.
_WORTHWHILE = 1 << 19


class Whole:
    """A call that is one native call forward and one backward, and what the layer does after it."""

    __slots__ = ("again", "bias", "call", "late", "moving", "now", "residual", "state", "tracks", "weight", "x")


def forward(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """The layer's output, activation and residual included, or None where the passes must serve."""
    if x.is_cuda or triton.interpreted():
        return device.forward(layer, x, sample_weight, residual)
    whole = whole_call(layer, x, sample_weight, residual)
    if isinstance(whole, str):
        return None
    call = whole.call
    y = run(whole.x, whole.weight, whole.bias, whole.residual, call)
    if call.status:
        if call.status == calls.TOO_FEW:
            return None
        if call.status == calls.NOT_FINITE:
            raise BatchNormError(f"batch statistics must be finite: {describe(layer)}")
    if whole.tracks and not whole.again:
        if call.moves:
            if layer.memory_names and not call.status:
                batch = call.batch().pool()
                layer._remember(whole.state, whole.moving.having(moments=batch), batch)
        elif not layer.paused:
            layer._move(call.batch().pool())
    if not whole.late:
        return y
    y = activate(y, layer.activation, layer.negative_slope, residual)
    return y if residual is None or sample_weight is None else torch.where(sample_weight != 0, y, 0)


def whole_call(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Whole | str:
    """The call, or why there is none."""
    buffers = layer._buffers
    stored = (layer.frozen or not layer.training) and buffers["running_mean"] is not None
    recipe, inplace = layer.recipe, layer.inplace and layer.training and not stored
    if (
        stored
        and layer.activation is None
        and residual is None
        and (x.numel() < _WORTHWHILE or not torch.is_grad_enabled())
    ):
        # torch's kernel has nothing to measure here; only its backward over large tensors is slow.
        return "torch's kernel is as fast with stored statistics and nothing to fuse"
    if not native.serves(x):
        return "the native kernels serve plain dense tensors on the CPU, outside compilers and transforms"
    if recipe.coupling.finishes is not None:
        return f"{recipe.coupling.finishes} follows the normalisation"
    tracks = not stored and layer.training and layer.track_running_stats and buffers["running_mean"] is not None
    coupling = recipe.coupling if tracks or stored else recipe.coupling.untracked()
    groups = 1 if stored else groups_of(recipe.extent, x, tracks)
    if isinstance(groups, str):
        return groups
    if stored and recipe.inference.mixes:
        return "inference mixes the stored statistics with those at hand"
    if inplace and (residual is not None or sample_weight is not None):
        return "the in-place form takes no residual, mask or weights"
    if coupling.looks_back:
        return "the population follows the weights of the layer before"
    if coupling.statistics is not None:
        return "its statistics are a function of the moments that no numbers give"
    whole, activation = Whole(), layer.activation
    together = residual is None or joins(layer, residual, x)
    # Activation and residual follow in torch.
    whole.late = not together or (sample_weight is not None and (activation is not None or residual is not None))
    whole.late = whole.late or (residual is not None and not follows_residual(activation))
    whole.weight, whole.bias = affine_of(layer)
    if not usable(whole.weight, whole.bias, x) or not (sample_weight is None or selects(sample_weight)):
        return "weight, bias, mask or weights cannot be read where they lie"
    statistics: Any = None
    if stored or tracks:
        statistics = statistics_of(layer, x)
        if statistics is None:
            return "the running statistics cannot be read where they lie"
    if inplace and whole.weight is not None:
        require_invertible(whole.weight, layer)
    whole.tracks, whole.again = tracks, tracks and recomputing()
    if tracks and layer.memory_names and coupling.reads_population and "_forward" in layer.__dict__:
        return "a forward that may run again keeps what its memory was"
    sharing = Sharing(groups, sample_weight, recipe.policy.weights == "reliability", coupling.centres)
    moves = tracks and not (layer.paused or layer.accumulating or whole.again)
    whole.state = whole.now = whole.moving = None
    move = Move()
    if stored:
        mean, var = (v.to(torch.float64, copy=True) for v in (statistics.mean, statistics.var))
        numbers, vectors = STORED, Vectors(mean, rest=var)
    else:
        if tracks:
            if coupling.reads_population and "_forward" in layer.__dict__:
                whole.state, whole.now = layer._situation(x.device, None, whole.again)
            else:
                held = {"running_mean": statistics.mean, "running_var": statistics.var}
                held.update((name, layer.stat(name)) for name in layer.memory_names)
                whole.state = Copied(held, torch.float64)
                whole.now = Now(1.0, layer.momentum, layer.eps, recipe.estimator, None, statistics.tracked)
            if layer.memory_names:
                _ = whole.state.mean, whole.state.var  # as they are before they move
        n = x.numel() // x.shape[1]
        try:
            made = _numbers(coupling, recipe, whole, sample_weight, n, groups, x.shape[0] % groups == 0, moves)
        except AfterReduction:
            return "its numbers take the batch's moments"
        if made is None:
            return "its numbers are tensors"
        numbers, vectors, move = made
    x, last = native.arranged(x)
    call = Native(layer, last, sharing, numbers, vectors)
    call.activation = None if whole.late else activation
    call.slope, call.inplace, call.stored, call.detached = layer.negative_slope, inplace, stored, coupling.detached
    call.statistics, call.moves = statistics if moves else None, moves
    call.plan = Plan(lambda _: (numbers, vectors), layer.eps, coupling.detached or stored, sample_weight is not None)
    call.memory = Memory(layer, whole.now) if tracks and not coupling.exact else None
    call.prepare(move, recipe.policy.nonfinite)
    whole.call, whole.x, whole.residual = call, x, None
    if residual is not None and not whole.late:
        whole.residual = native.like(residual if residual.shape == x.shape else residual.expand_as(x), x)
    return whole


def _numbers(
    coupling: Any, recipe: Any, whole: Whole, weight: Any, n: int, groups: int, even: bool, moves: bool
) -> tuple[Numbers, Vectors, Move] | None:
    """Plan and move in numbers, before the reduction; None where one of them is a tensor."""
    state, move = whole.state, Move()
    now = Now(1.0, None, 0.0) if whole.now is None else whole.now
    if weight is None:
        now.values = n // groups if even else None
    numbers, vectors = coupling.plan(state, now)
    if moves:
        whole.moving = now
        if (groups > 1 and now.values is not None) or (now.values is None and weight is None):
            whole.moving = now.having(values=n)
        move = recipe.estimator.move(state, whole.moving)
    return (numbers, vectors, move) if _in_numbers(numbers, move) else None


_NUMBERS = {float, int, bool}


def _in_numbers(numbers: Numbers, move: Any) -> bool:
    """Whether all of them are Python's own, as an extension takes them."""
    return {*map(type, numbers), *map(type, move[:4])} <= _NUMBERS


def groups_of(extent: Any, x: Tensor, tracks: bool) -> int | str:
    """Into how many groups the batch is split, or why they are no matter of one call."""
    if extent.sync is not None and extent.sync.size() > 1:
        return "the statistics are shared over processes"
    if tracks and extent.sequential:
        return "each group meets what its predecessor left"
    n = x.shape[0]
    groups = extent.groups(n)
    return "a group has one value" if n // groups * (x.numel() // (n * x.shape[1])) == 1 else groups


def after_moments(
    layer: Any, x: Tensor, sharing: Sharing, plan: Plan, batch: Any, memory: Any, move: Move | None
) -> Native | None:
    """The native call that follows the moments, or None where the passes must serve.

    With a move the running statistics move in it.
    """
    if x.is_cuda or triton.interpreted():
        return device.after_moments(layer, x, sharing, plan, batch, memory, move)
    if not (native.enabled() and native.unwatched() and native.plain(x) and x.dim() >= 2 and x.shape[1]):
        return None
    weight, bias = affine_of(layer)
    if plan.for_few is not None or plan.statistics_of is not None or not usable(weight, bias, x):
        return None
    if not (sharing.weight is None or selects(sharing.weight)):
        return None
    numbers, vectors = plan.numbers_of(batch)
    if not _in_numbers(numbers, move or ()):
        return None
    if any(v is not None and v.requires_grad for v in vectors):
        return None
    statistics = None if move is None else statistics_of(layer, x)
    if move is not None and statistics is None:
        return None
    x, last = native.arranged(x)
    call = Native(layer, last, sharing, numbers, vectors)
    call.detached, call.plan, call.memory = plan.detached, plan, memory
    call.statistics, call.moves = statistics, move is not None
    saved = calls.Saved(sharing.groups, x.shape[1])
    for row, value in zip((0, 1, 2, 3), (batch.count, batch._squares(), batch.mean, batch.m2), strict=True):
        saved.row(row).copy_(value)
    call.saved = saved
    call.prepare(move or Move(), layer.recipe.policy.nonfinite)
    return call


def serves(layer: Any, x: Tensor, sample_weight: Tensor | None = None, residual: Tensor | None = None) -> str:
    """What runs this call, in words, and why nothing faster does."""
    if layer.channel_axis != 1:
        x, residual = (None if t is None else t.movedim(layer.channel_axis, 1) for t in (x, residual))  # pyright: ignore
    if x.dim() == 3 and not x.is_contiguous():
        x = x.contiguous()
    found = whole_call(layer, x, sample_weight, residual)
    if not isinstance(found, str):
        return "native: one call forward and one back"
    stored = (layer.frozen or not layer.training) and layer.running_mean is not None
    if stored and not layer.recipe.inference.mixes:
        return f"torch's batch norm kernel: {found}"
    coupling = layer.recipe.coupling
    if coupling.is_plain and sample_weight is None and groups_of(layer.recipe.extent, x, False) == 1 and not stored:
        return f"torch's batch norm kernel: {found}"
    if not native.serves(x):
        return f"torch operations: {found}"
    split = not stored and coupling.statistics is None and not coupling.looks_back
    return f"{'native calls around the rule' if split else 'native passes and the rule in torch'}: {found}"
