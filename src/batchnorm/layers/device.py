"""A call on a CUDA device by Triton's kernels: three launches forward and three back, and nothing is waited for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.activation import activate, follows_residual
from batchnorm.layers.asserting import require
from batchnorm.layers.choices.situation import AfterReduction, Now
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import require_unchanged
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import STORED, Move, Numbers, Pull, Rows, Vectors
from batchnorm.layers.step import Passing, Plan, Sharing, run

# What groups that a mask leaves with one value come to, as the kernels count them.
OTHERS, POPULATION, REFUSED = 0, 1, 2
_NOT_FINITE = "batch statistics must be finite"
_ONE_VALUE = "training needs at least 2 unmasked values per channel, over all ranks"
_REPEATS = (
    "weights that count repetitions must sum to more than 1 per channel; "
    "Policy(weights='reliability') accepts any scale"
)


class Call:
    """A forward in three launches, or in the two that follow the moments where they are given; likewise backward."""

    is_native, inplace, learned = True, False, ()

    def __init__(self, layer: Any, last: bool, sharing: Sharing, numbers: Numbers, vectors: Vectors, plan: Plan) -> None:
        self.layer, self.last, self.sharing, self.plan = layer, last, sharing, plan
        self.numbers, self.vectors = numbers, vectors
        self.activation: str | None = None
        self.slope, self.stored, self.moves, self.few = 0.0, False, False, OTHERS
        self.statistics: calls.Statistics | None = None
        self.saved: calls.Saved | None = None
        self.outcome: Tensor | None = None
        self.memory: Any = None

    def prepare(self, move: Move, device: torch.device, frequency: bool = False) -> None:
        """Everything in the kernels' terms."""
        k, policy = move, self.layer.recipe.policy
        self.slope = self.slope if self.activation == "leaky_relu" else 0.0
        self.vectors_told = calls.Vectors(*self.vectors, k.from_mean, k.from_var)
        self.spec = triton.calls().spec(
            *self.numbers, k.gain, k.q, k.p, k.r, k.root, k.correction, self.layer.eps, self.sharing.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), self.slope, self.sharing.reliability,
            calls.NONFINITE.index(policy.nonfinite), device=device, few=self.few,
            frequency=frequency,
        )  # fmt: skip

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output; `saved` has the channel vectors then, `outcome` what became of the statistics."""
        y, self.saved, self.outcome = triton.calls().forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, self.sharing.weight, self.vectors_told,
            self.statistics, self.moves, self.saved,
        )  # fmt: skip
        return y

    @property
    def status(self) -> Tensor | None:
        """As `settle`, where the native call has a number."""
        return self.settle()

    def settle(self) -> Tensor | None:
        """Whether the batch entered the statistics; what is not legal is raised, by a device when it gets there."""
        if self.outcome is None:
            return None
        layer = self.layer
        if self.spec.nonfinite == calls.NONFINITE.index("raise"):
            require(self.outcome[1], _NOT_FINITE, layer)
        if self.few == REFUSED:
            require(self.outcome[2], _ONE_VALUE, layer)
        if self.spec.frequency:
            require(self.outcome[3], _REPEATS, layer)
        return self.outcome[0] != 0

    def begin(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """As `Passing.begin`, around the sum over ranks."""
        told = self._told(g, x, weight, bias, y, needs)
        if told is None:
            return self._in_torch().begin(g, x, weight, bias, y, needs, learned)
        backward = triton.calls().backward
        _, dw, db, _, sums = backward(*told, phase=calls.SUMS)

        def end(*everybodys: Tensor) -> tuple[Any, ...]:
            given, memory = self._constant(), self.memory
            if memory is not None:
                brought = self._brought(weight, everybodys)
                at = memory.open()
                given = memory.pull(at, self.numbers, brought)
                memory.learn(at, self.numbers, brought, given)
            dx, _, _, dr, _ = backward(*told, pull=given, sums=torch.stack(everybodys), phase=calls.REST)
            return dx, dw, db, (g if dr is None else dr) if needs[3] else None

        return tuple(sums), end

    def backward(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """Three launches, or four around what needs the sums; in torch where something watches."""
        given, memory, ranks = self._constant(), self.memory, self.sharing.ranks
        told = self._told(g, x, weight, bias, y, needs) if ranks is None else None
        at: Any = None
        if told is not None and memory is not None:
            at = memory.open()
            given = memory.pull(at, self.numbers, None)
        if told is None or (memory is not None and given is None):
            sums, end = self.begin(g, x, weight, bias, y, needs, learned)
            return end(*(sums if ranks is None else ranks.sums(*sums)))
        dx, dw, db, dr, sums = triton.calls().backward(*told, pull=given)
        if memory is not None:
            memory.learn(at, self.numbers, self._brought(weight, sums), given)
        return dx, dw, db, (g if dr is None else dr) if needs[3] else None

    def _constant(self) -> Pull | None:
        return Pull() if self.plan.detached else None

    def _told(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """What a backward is told, or None where the kernels cannot read all of it.

        Raises:
            OperandError: a tensor of another size than in the forward.
        """
        channels = torch.Size((self.saved.channels,))  # pyright: ignore[reportOptionalMemberAccess]
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None and t.shape != channels:
                require_unchanged(self.layer, name, t, channels)
        if not (native.unwatched() and triton.plain(g) and triton.plain(x) and native.laid_out(x, self.last)):
            return None
        require_unchanged(self.layer, "input", x, g.shape)
        wants = needs[0], weight is not None and needs[1], bias is not None and needs[2]
        g = native.like(g, x)
        return self.spec, g, x, y, self.last, weight, bias, self.sharing.weight, self.saved, wants

    def batch(self) -> Moments:
        """The moments of each group."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        squares = None if self.sharing.weight is None and self.sharing.ranks is None else row(1)
        return Moments(row(0), row(2), row(3), squares, self.sharing.reliability)

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        n, numbers = rule.or_one(row(0)), self.numbers
        own_u, own_v = (0.0, 0.0) if self.plan.detached else (numbers.mean, row(7) * n)
        few = self.batch().few if self.few == POPULATION else None
        return Rows(n, row(4), row(5), row(6), own_u, own_v, row(8), row(12), row(9), few)

    def _brought(self, weight: Any, sums: Any) -> rule.Sums:
        """All that the memory asks of the data."""
        return rule.told(self.rows(), self.batch(), weight, *sums, full=self.sharing.weight is None)

    def _in_torch(self) -> Passing:
        """The same by the passes, where g is no plain tensor (vmap over gradients, a mode)."""
        given = self.sharing, self.plan, self.numbers, self.vectors, self.batch(), self.rows(), self.memory
        return Passing(*given, (), self.activation, self.slope)


class Whole:
    """A call, its operands as the kernels read them, and what the layer does after it."""

    call: Call
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None = None
    late = tracks = again = False
    state: Any = None
    moving: Any = None


def forward(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """The layer's output, activation and residual included, or None where the passes must serve."""
    whole = whole_call(layer, x, sample_weight, residual)
    if isinstance(whole, str):
        return None
    call = whole.call
    y = run(whole.x, whole.weight, whole.bias, whole.residual, call)
    entered = call.settle()
    if whole.tracks and not whole.again:
        if not call.moves and not layer.paused:
            batch = call.batch()
            layer._move(batch.pool(), whole.moving, batch.has_several() if call.few != OTHERS else None)
        elif call.moves and layer.memory_names:
            batch = call.batch().pool()
            kept = layer._kept(whole.state, whole.moving.having(moments=batch), batch)
            layer._write_memory(kept, entered)
    if not whole.late:
        return y
    y = activate(y, layer.activation, layer.negative_slope, residual)
    return y if residual is None or sample_weight is None else torch.where(sample_weight != 0, y, 0)


def whole_call(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Whole | str:
    """The call, or why there is none."""
    from batchnorm.layers.backends import groups_of

    recipe, activation = layer.recipe, layer.activation
    stored = (layer.frozen or not layer.training) and layer.running_mean is not None
    fuses = activation is not None or residual is not None
    if stored and not fuses:
        return "torch's kernel is as fast with stored statistics and nothing to fuse"
    why = triton.declined(x)
    if why is not None:
        return why
    if layer.inplace and layer.training and not stored:
        return "the in-place form starts its backward from the output"
    if recipe.coupling.finishes is not None:
        return f"{recipe.coupling.finishes} follows the normalisation"
    if stored and recipe.inference.mixes:
        return "inference mixes the stored statistics with those at hand"
    tracks = layer.training and not stored and layer.track_running_stats and layer.running_mean is not None
    coupling = recipe.coupling if tracks or stored else recipe.coupling.untracked()
    groups = 1 if stored else groups_of(recipe.extent, x, tracks)
    if isinstance(groups, str):
        return groups
    if coupling.is_plain and groups == 1 and sample_weight is None and not fuses:
        return "torch's kernel is as fast for plain batch norm and nothing to fuse"
    if coupling.looks_back:
        return "the population follows the weights of the layer before"
    if coupling.statistics is not None:
        return "its statistics are a function of the moments that no numbers give"
    if tracks and layer.memory_names and coupling.reads_population and "_forward" in layer.__dict__:
        return "a forward that may run again keeps what its memory was"
    whole = Whole()
    whole.weight, whole.bias = layer._affine()
    statistics = statistics_of(layer, x) if stored or tracks else None
    if not readable(x, whole.weight, whole.bias, sample_weight) or (statistics is None and (stored or tracks)):
        return "weight, bias, mask, weights or running statistics cannot be read where they lie"
    whole.late = fuses and (sample_weight is not None or (residual is not None and not _joins(layer, residual, x)))
    whole.tracks, whole.again = tracks, tracks and recomputing()
    moves = tracks and not (layer.paused or layer.accumulating or whole.again)
    sharing = Sharing(groups, sample_weight, recipe.policy.weights == "reliability", coupling.centres)
    few = few_of(layer, sharing, coupling, tracks)
    if few == POPULATION and whole.again:
        return "the statistics that groups of one value met have moved since"
    move, now = Move(), Now(1.0, None, 0.0)
    if stored:
        numbers, vectors = STORED, Vectors(*(v.to(torch.float64, copy=True) for v in statistics[:1]), rest=statistics[1].double())
    else:
        if tracks:
            whole.state, now = layer._situation(x.device, None, whole.again)
            if layer.memory_names:
                _ = whole.state.mean, whole.state.var  # as they are before they move
        n, even = x.numel() // x.shape[1], x.shape[0] % groups == 0
        if sample_weight is None:
            now.values = n // groups if even else None
        try:
            numbers, vectors = coupling.plan(whole.state, now)
            whole.moving = now.having(values=n) if groups > 1 and sample_weight is None else now
            move = recipe.estimator.move(whole.state, whole.moving) if moves else move
        except AfterReduction:
            return "its numbers take the batch's moments"
        if not in_numbers(numbers, move) or any(v is not None and v.requires_grad for v in vectors):
            return "its numbers are learned, or differ between groups"
    whole.x, last = native.arranged(x)
    plan = Plan(lambda _: (numbers, vectors), layer.eps, coupling.detached or stored, sample_weight is not None)
    whole.call = call = Call(layer, last, sharing, numbers, vectors, plan)
    call.activation, call.slope = None if whole.late else activation, layer.negative_slope
    call.stored, call.few, call.statistics, call.moves = stored, few, statistics, moves
    call.memory = Memory(layer, now) if tracks and not coupling.exact else None
    repeats = sample_weight is not None and not stored and recipe.policy.weights == "frequency"
    call.prepare(move, x.device, repeats)
    if residual is not None and not whole.late:
        whole.residual = native.like(residual if residual.shape == x.shape else residual.expand_as(x), whole.x)
    return whole


def after_moments(
    layer: Any, x: Tensor, sharing: Sharing, plan: Plan, batch: Any, memory: Any, move: Move | None
) -> Call | None:
    """The call that follows the moments, or None where the passes must serve; with a move the statistics move in it."""
    weight, bias = layer._affine()
    if plan.for_few is not None or plan.statistics_of is not None or not readable(x, weight, bias, sharing.weight):
        return None
    numbers, vectors = plan.numbers_of(batch)
    if not in_numbers(numbers, move or Move()) or any(v is not None and v.requires_grad for v in vectors):
        return None
    statistics = None if move is None else statistics_of(layer, x)
    if move is not None and statistics is None:
        return None
    call = Call(layer, native.arranged(x)[1], sharing, numbers, vectors, plan)
    call.memory, call.statistics, call.moves = memory, statistics, move is not None
    saved = calls.Saved(sharing.groups, x.shape[1], x.new_empty(calls.size(sharing.groups, x.shape[1]), dtype=torch.float64))
    for row, value in zip((0, 1, 2, 3), (batch.count, batch._squares(), batch.mean, batch.m2), strict=True):
        saved.row(row).copy_(value)
    call.saved = saved
    call.prepare(move or Move(), x.device)
    return call


def few_of(layer: Any, sharing: Sharing, coupling: Any, tracks: bool) -> int:
    """What groups that a mask leaves with one value come to."""
    if sharing.weight is None or coupling.takes_one_value or layer.frozen or not (tracks or layer.training):
        return OTHERS
    return POPULATION if tracks and layer.recipe.policy.too_few == "population" else REFUSED


def in_numbers(numbers: Numbers, move: Move) -> bool:
    """Whether each is one value: a number, or a tensor that nothing learns."""
    every = (*numbers, *move[:4])
    return all(not isinstance(v, Tensor) or (v.numel() == 1 and not v.requires_grad) for v in every)


def readable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all lie in order beside x; weight and bias are given first, of one value a channel."""
    weight, bias, sample_weight = others
    vectors = [v for v in (weight, bias) if v is not None]
    return (
        triton.declined(x) is None
        and all(triton.plain(v) and v.device == x.device and v.is_contiguous() for v in vectors)
        and all(v.numel() == x.shape[1] for v in vectors)
        and not (x.dtype is not torch.float64 and any(v.dtype is torch.float64 for v in vectors))
        and (sample_weight is None or (type(sample_weight) is Tensor and sample_weight.device == x.device))
    )


def statistics_of(layer: Any, x: Tensor) -> calls.Statistics | None:
    """The running statistics and counters, where they may be read and written where they lie."""
    mean, var, tracked = (layer.stat(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
    skipped = layer.num_batches_skipped
    wide = x.dtype is torch.float64
    for v in (mean, var):
        if v is None or v.requires_grad or not triton.plain(v) or v.numel() != x.shape[1] or not v.is_contiguous():
            return None
        if v.device != x.device or v.dtype is not (torch.float64 if wide else torch.float32):
            return None
    if any(v is not None and (v.device != x.device or v.dtype is not torch.int64) for v in (tracked, skipped)):
        return None
    return calls.Statistics(mean, var, tracked, skipped)


def _joins(layer: Any, residual: Tensor, x: Tensor) -> bool:
    """Whether a residual may be added by the kernel: once expanded, of x's shape and not wider, and told by the output."""
    if residual.device != x.device or not triton.plain(residual) or not follows_residual(layer.activation):
        return False
    if layer.activation == "leaky_relu" and layer.negative_slope < 0:
        return False
    if residual.dim() > x.dim() or any(r not in (1, n) for r, n in zip(reversed(residual.shape), reversed(x.shape))):
        return False
    return torch.promote_types(residual.dtype, x.dtype) is x.dtype
