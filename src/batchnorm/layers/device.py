"""A call on a CUDA device by Triton's kernels: three launches forward and three back, and nothing is waited for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.activation import follows_residual
from batchnorm.layers.asserting import require
from batchnorm.layers.choices.situation import AfterReduction, Now
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import require_residual, require_unchanged
from batchnorm.layers.passing import Passing, Plan, Sharing
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import STORED, Move, Numbers, Pull, Rows, Vectors

NARROW = (torch.float16, torch.bfloat16)
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

    def __init__(
        self, layer: Any, last: bool, sharing: Sharing, numbers: Numbers, vectors: Vectors, plan: Plan
    ) -> None:
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
            *self.numbers, *k[:6], self.layer.eps, self.sharing.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), self.slope, self.sharing.reliability,
            calls.NONFINITE.index(policy.nonfinite), device=device, few=self.few,
            frequency=frequency,
        )  # fmt: skip

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output; `saved` has the channel vectors then, `outcome` what became of the statistics."""
        y, self.saved, self.outcome = triton.calls().forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, self.sharing.weight,
            self.vectors_told, self.statistics, self.moves, self.saved,
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
            return dx, dw, db, (g if dr is None else dr) if needs[3] else None, None

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
        return dx, dw, db, (g if dr is None else dr) if needs[3] else None, None

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
        return rule.told(self.rows(), self.batch(), weight, *sums)

    def _in_torch(self) -> Passing:
        """The same by the passes, where g is no plain tensor (vmap over gradients, a mode)."""
        given = self.sharing, self.plan, self.numbers, self.vectors, self.batch(), self.rows(), self.memory
        return Passing(*given, (), self.activation, self.slope)


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
    late = fuses and (sample_weight is not None or (residual is not None and not _joins(layer, residual, x)))
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


def finish(layer: Any, whole: Whole) -> None:
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
        if not triton.plain(v) or v.device != x.device or v.numel() != x.shape[1] or not v.is_contiguous():
            return False
        if (v.dtype is torch.float64) is not (x.dtype is torch.float64) and v.dtype not in NARROW:
            return False
    return sample_weight is None or (type(sample_weight) is Tensor and sample_weight.device == x.device)


def statistics_of(layer: Any, x: Tensor) -> calls.Statistics | None:
    """The running statistics and counters, where they may be read and written where they lie."""
    mean, var, tracked = (layer.stat(name) for name in ("running_mean", "running_var", "num_batches_tracked"))
    skipped = layer.num_batches_skipped
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    for v in (mean, var):
        if v is None or v.requires_grad or not triton.plain(v) or v.numel() != x.shape[1] or not v.is_contiguous():
            return None
        if v.device != x.device or v.dtype is not dtype:
            return None
    if any(v is not None and (v.device != x.device or v.dtype is not torch.int64) for v in (tracked, skipped)):
        return None
    return calls.Statistics(mean, var, tracked, skipped)


def _joins(layer: Any, residual: Tensor, x: Tensor) -> bool:
    """Whether a residual may be added by the kernel: once expanded of x's shape, not wider, told by the output."""
    if residual.shape != x.shape or residual.device != x.device:
        require_residual(layer, x, residual)
        sizes = zip(reversed(residual.shape), reversed(x.shape), strict=False)
        if residual.dim() > x.dim() or any(r > n for r, n in sizes):
            return False
    if not triton.plain(residual) or not follows_residual(layer.activation):
        return False
    if layer.activation == "leaky_relu" and layer.negative_slope < 0:
        # The backward reads the sign of what was activated from the output, which here has none.
        return False
    return torch.promote_types(residual.dtype, x.dtype) is x.dtype
