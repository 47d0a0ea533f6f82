"""Which backend serves a call of a layer: one native call where choices and tensors allow it, or why not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import calls, native
from batchnorm.layers.activation import finished, follows_residual
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.estimators import Estimator
from batchnorm.layers.choices.situation import AfterReduction, Held, Now
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import joins, require_invertible
from batchnorm.layers.passing import Sharing
from batchnorm.layers.processes.ranks import partners
from batchnorm.layers.recompute import graph_task, recomputing
from batchnorm.layers.rule import NOTHING, STORED, Move, Numbers, Vectors
from batchnorm.layers.step import Native, run

# Values from which a frozen layer's native backward outweighs the cost of calling it.
_WORTHWHILE = 1 << 19
_NUMBERS = {float, int, bool}
_PLAIN, _STILL = (Numbers(), NOTHING), Move()


class Ready:
    """What a layer's choices and settings come to in every call; found again when one of them is another."""

    def __init__(self, layer: Any, key: tuple[Any, ...], has_statistics: bool) -> None:
        recipe = self.recipe = layer.recipe
        coupling, extent, estimator = recipe.coupling, recipe.extent, recipe.estimator
        self.key, self.specs = key, {}
        self.stored = (layer.frozen or not layer.training) and has_statistics
        self.tracks = not self.stored and layer.training and layer.track_running_stats and has_statistics
        self.coupling = coupling = coupling if self.tracks or self.stored else coupling.untracked()
        self.detached, self.memory = coupling.detached, layer.memory_names
        self.reason = recipe.splits_calls(coupling, self.tracks, self.stored)
        # Who splits batches, and who shares them; nobody with stored statistics.
        self.extent = None if self.stored or not extent.splits else extent
        self.sync = None if self.stored else extent.sync
        self.reliability = recipe.policy.weights == "reliability"
        self.nonfinite = calls.NONFINITE.index(recipe.policy.nonfinite)
        self.sharing = Sharing(1, None, self.reliability, coupling.centres)
        # The move of a plain moving average is the same numbers in every step; of plain batch norm all of them are.
        self.move = estimator.constant(layer.momentum) if self.tracks else _STILL
        # Whether a batch that enters is kept, in a memory of the estimator's or the coupling's.
        kept = type(estimator).remember is not Estimator.remember or type(coupling).remember is not Coupling.remember
        self.remembers = kept and bool(self.memory)
        self.rereads = estimator.remembers_population or coupling.remembers_population
        self.fixed = self.move is not None and coupling.is_plain and not (self.stored or layer.memory_names)


def ready_of(layer: Any) -> Ready:
    """What holds for this call."""
    own = layer.__dict__
    has_statistics = own["_buffers"]["running_mean"] is not None
    key = (
        layer.momentum, layer.eps, layer.training, layer.frozen, layer.track_running_stats, has_statistics,
        layer.activation, layer.negative_slope, layer.memory_names,
    )  # fmt: skip
    found = own.get("_ready")
    if found is None or found.recipe is not layer.recipe or found.key != key:
        found = own["_ready"] = Ready(layer, key, has_statistics)
    return found


class Whole(NamedTuple):
    """A call that is one call forward and one backward, its operands, and what the layer does after it."""

    call: Any
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    late: bool  # activation and residual follow in torch
    moving: Any  # what the choices were told, where the statistics are to move
    sync: Any  # with whom the statistics are shared


def forward(layer: Any, x: Tensor, sample_weight: Any, residual: Tensor | None, on: Any = None) -> Tensor | None:
    """The layer's output, activation and residual included, or None where the passes must serve."""
    whole = whole_call(layer, x, sample_weight, residual, on)
    if isinstance(whole, str):
        return None
    call, given, weight, bias, beside, late, moving, sync = whole
    if sync is not None:
        batch = _pooled(layer, call, given, sync)
        if batch is not None:
            r = ready_of(layer)
            y = layer._coupled(x, call.sharing, r.coupling, r.tracks, batch)
            return finished(layer, y, residual, sample_weight)
    y = run(given, weight, bias, beside, call)
    entered = call.entered()
    if entered is None:
        return None
    if moving is not None:
        if not call.moves:
            layer._move(call.batch(pooled=True), None, call.several())
        elif moving and entered is not False:
            layer._remember(*moving, call.batch(pooled=True), entered)
    return finished(layer, y, residual, sample_weight) if late else y


def whole_call(layer: Any, x: Tensor, sample_weight: Any, residual: Tensor | None, on: Any = None) -> Whole | str:
    """The call, by the native kernels or a device's (`device.Kernels`), or why there is none."""
    r = ready_of(layer)
    stored, activation, tracks = r.stored, layer.activation, r.tracks
    fuses = activation is not None or residual is not None
    if stored and not fuses and (on is not None or x.numel() < _WORTHWHILE or not torch.is_grad_enabled()):
        # torch's kernel has nothing to measure here; only its backward over large tensors is slow.
        return "torch's kernel is as fast with stored statistics and nothing to fuse"
    if on is None and not native.serves(x):
        return "the native kernels serve plain dense tensors on the CPU, outside compilers and transforms"
    shape = x.shape
    samples, n = shape[0], x.numel() // (shape[1] or 1)
    groups = 1 if r.extent is None else r.extent.groups(samples)
    why = r.reason if on is None else on.declined(layer, r, x, sample_weight, groups, fuses) or r.reason
    if why is not None:
        return why
    sync = r.sync if r.sync is not None and r.sync.size() > 1 else None
    if sync is not None and (sample_weight is not None or not (r.fixed and r.extent is None and layer.training)):
        return "the statistics are shared over processes"
    if not stored and sync is None and fewest(shape, groups) == 1:
        return "a group has one value"
    inplace = layer.inplace and layer.training and not stored and sync is None
    if inplace and (residual is not None or sample_weight is not None):
        return "the in-place form takes no residual, mask or weights"
    late = fuses and sample_weight is not None
    if residual is not None:
        reads = native.plain if on is None else native.dense
        late = not joins(layer, residual, x, reads) or late or not follows_residual(activation)
    own = layer._parameters
    if layer.active_bank is None and "weight" in own and "bias" in own:
        weight, bias = own["weight"], own["bias"]
    else:
        weight, bias = layer.affine_part("weight"), layer.affine_part("bias")
    statistics: Any = statistics_of(layer) if stored or tracks else None
    if not (readable if on is None else on.readable)(x, weight, bias, sample_weight, statistics):
        return "weight, bias, mask, weights or running statistics cannot be read where they lie"
    if inplace and weight is not None:
        require_invertible(weight, layer)
    again = tracks and graph_task() != -1 and recomputing()
    # What a forward keeps for its backward goes by its numbers, so one that runs again asks for all that its first did.
    would = tracks and not (layer.paused or layer.accumulating)
    moves = would and not again
    (numbers, vectors), move, moving = _PLAIN, r.move, None
    nothing: Any = None
    state, now, held = nothing, nothing, nothing
    values = n // groups if sample_weight is None and samples % groups == 0 else None
    if stored:
        mean, var = (v.to(torch.float64, copy=True) for v in (statistics.mean, statistics.var))
        numbers, vectors = STORED, Vectors(mean, rest=var)
    elif on is not None or not r.fixed:
        again_later = layer._forward is not None and r.recipe.reads_population
        if tracks and again_later and r.memory:
            return "a forward that may run again keeps what its memory was"
        if tracks and (again_later or on is not None):
            state, now = layer._situation(x.device, None, again)
        elif tracks:
            held = layer._held() if r.memory else {"running_mean": statistics.mean, "running_var": statistics.var}
            state = Held(held, torch.float64)
            now = Now(1.0, layer.momentum, layer.eps, r.recipe.estimator, None, statistics.tracked)
        else:
            now = Now(1.0, None, 0.0)
        if moves and r.remembers:
            _ = (state.mean, state.var, now.step) if r.rereads or on is not None else now.step  # before they move
        now.values = values
        try:
            numbers, vectors = r.coupling.plan(state, now)
            moving = now if sample_weight is not None or groups == 1 else now.having(values=n)
            if move is None and would:
                move = r.recipe.estimator.move(state, moving)
        except AfterReduction:
            return "its numbers take the batch's moments"
        if not (in_numbers if on is None else on.takes)(numbers, vectors, move or _STILL):
            return "its numbers are tensors, learned, or differ between groups"
    x, last = native.arranged(x)
    plain = groups == 1 and sample_weight is None
    sharing = r.sharing if plain else Sharing(groups, sample_weight, r.reliability, r.coupling.centres)
    call: Any = (Native if on is None else on.call)(layer, last, sharing, numbers, vectors)
    call.activation, call.slope, call.inplace = None if late else activation, layer.negative_slope, inplace
    call.stored, call.detached, call.moves, call.values = stored, r.detached, moves, values
    if moves or on is not None:
        call.statistics = statistics
    if tracks and not r.coupling.exact:
        call.memory = Memory(layer, now, held)
    specs = r.specs if on is None and r.fixed else {}
    if (moves, late) in specs:
        call.spec = specs[moves, late]
    else:
        call.prepare(move if moves and move else _STILL, r, x)
        specs[moves, late] = call.spec
    if residual is not None and not late:
        residual = native.like(residual if residual.shape == shape else residual.expand_as(x), x)
    after = None if not tracks or again or layer.paused else (state, moving) if r.remembers else ()
    return Whole(call, x, weight, bias, None if late else residual, late, after, sync)


def fewest(shape: torch.Size, groups: int) -> int:
    """How many values the smallest group of a channel holds."""
    return shape[0] // groups * math.prod(shape[2:])


def in_numbers(numbers: Numbers, vectors: Vectors, move: Any) -> bool:
    """Whether all of them are Python's own, as an extension takes them, and no vector is learned."""
    if not {*map(type, numbers), *map(type, move[:4])} <= _NUMBERS or type(move.correction) is not int:
        return False
    return vectors is NOTHING or not any(v is not None and v.requires_grad for v in vectors)


def readable(x: Tensor, weight: Any, bias: Any, sample_weight: Tensor | None, statistics: Any) -> bool:
    """Whether all of them may be read, and the statistics written, where they lie."""
    if not native.affine(weight, bias, x) or not (sample_weight is None or native.selects(sample_weight)):
        return False
    return statistics is None or native.statistics(x, *statistics)


def statistics_of(layer: Any) -> Any:
    """The running statistics and counters of the active bank, as `calls.Statistics`."""
    skipped = layer.__dict__.get("_skipped")
    if skipped is None or not skipped.is_cpu:
        skipped = layer.num_batches_skipped
    held = layer._buffers
    if layer.active_bank is None:
        return calls.Statistics(held["running_mean"], held["running_var"], held["num_batches_tracked"], skipped)
    mean, var, tracked = (layer.stat(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
    return calls.Statistics(mean, var, tracked, skipped)


def _pooled(layer: Any, call: Native, x: Tensor, sync: Any) -> Moments | None:
    """Let the call have the moments of all ranks; or give them back, where they are too few for it."""
    ranks = partners(layer, sync)
    call.sharing = call.sharing._replace(ranks=ranks, uneven=True)
    call.values = None
    saved = call.saved = calls.reduced(x, call.last, call.sharing.centres)
    batch: Any = ranks.pool(Moments(saved.row(0), saved.row(2), saved.row(3), None, call.sharing.reliability))
    if batch.count.reshape(-1)[0].item() <= 1:
        return batch
    saved.take(batch.count, batch.count_squared, batch.mean, batch.m2)
    return None
