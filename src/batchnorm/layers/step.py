"""One step of normalisation: one autograd function, and behind it the native calls or the four passes.

`Step` keeps x (or the output alone) and channel vectors and goes back by the rule's pull.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.kernels import calls, fused, native
from batchnorm.kernels.shapes import or_one
from batchnorm.layers import rule
from batchnorm.layers.asserting import FINITE
from batchnorm.layers.moments import Later, Moments, SavedMoments
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import require_unchanged
from batchnorm.layers.passing import Passing, Plan, Sharing, respelled, spelled
from batchnorm.layers.rule import Move, Numbers, Pull, Rows, Vectors


class Native:
    """A forward in one native call, or in what follows the moments where they are given; likewise backward."""

    __slots__ = (
        "activation", "detached", "given_plan", "handed_in", "inplace", "last", "layer", "memory", "moves", "numbers",
        "saved", "sharing", "slope", "spec", "statistics", "status", "stored", "values", "vectors",
    )  # fmt: skip

    is_native = True
    # The backward, whole or in two calls; which tensors it reads, and which weight and bias beside them.
    kernel: Any = staticmethod(calls.backward)
    reads: Any = staticmethod(native.plain)
    affine: Any = staticmethod(native.affine)

    def __init__(self, layer: Any, last: bool, sharing: Sharing, numbers: Numbers, vectors: Vectors) -> None:
        self.layer, self.last, self.sharing, self.numbers, self.vectors = layer, last, sharing, numbers, vectors
        self.saved: calls.Saved | None = None
        # What of the layer the call reads and moves: the running statistics with their counters.
        self.statistics: calls.Statistics | None = None
        self.memory: Any = None
        self.given_plan: Plan | None = None
        self.detached = self.inplace = self.moves = self.stored = False
        self.activation: str | None = None
        self.slope = 0.0
        # How many values a group holds, where it is the same number in all of them.
        self.values: float | None = None
        self.handed_in = calls.NONE

    def prepare(self, move: Move, r: Any, x: Tensor) -> None:
        """Everything in the extension's terms."""
        pm, pv, rest = self.vectors
        joined = move.from_mean is not None or move.from_var is not None
        if joined or pm is not None or pv is not None or rest is not None:
            self.handed_in = calls.Vectors(*self.vectors, move.from_mean, move.from_var)
        self.spec = calls.spec(*self._terms(move, r))

    def _terms(self, move: Move, r: Any) -> tuple[Any, ...]:
        """The numbers and flags of a spec."""
        return (
            *self.numbers, *move[:6], self.layer.eps, self.sharing.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), self.slope if self.activation == "leaky_relu" else 0.0,
            self.sharing.reliability, r.nonfinite,
        )  # fmt: skip

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """One call; `saved` has the channel vectors then, `status` what became of the statistics."""
        y, w = None, self.sharing.weight
        if self.stored and self.activation is None and residual is None and w is None:
            # torch's own output, to the last bit: `to_stock` promises it, and only its backward is slow.
            stat = self.layer.stat
            y = fused.batch_norm_stored(x, weight, bias, stat("running_mean"), stat("running_var"), self.layer.eps)
        y, self.saved, self.status = calls.forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, w, self.handed_in, self.statistics,
            self.moves, y, self.saved,
        )  # fmt: skip
        return y

    def entered(self) -> Any:
        """Whether the batch entered the statistics: a tensor on a device, None where a group has too few values."""
        if self.status == calls.NOT_FINITE:
            raise BatchNormError(f"{FINITE}: {describe(self.layer)}")
        return None if self.status == calls.TOO_FEW else self.status == calls.DONE

    def several(self) -> Tensor | None:
        """Whether any group has more than one value, where that is not known."""
        return None

    def begin(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """As `Passing.begin`, in two calls; by the passes where the kernels cannot read all of it."""
        told, kernel, memory = self._told(g, x, weight, bias, y, needs), self.kernel, self.memory
        if told is None:
            # g is no plain tensor (vmap over gradients, a mode).
            given = self.sharing, self.plan, self.numbers, self.vectors, self.batch(), self.rows(), memory
            passing = Passing(*given, self.activation, self.slope, self.inplace)
            return passing.begin(g, x, weight, bias, y, needs)
        _, dw, db, _, sums, *_ = kernel(*told, phase=calls.SUMS)

        def end(*everybodys: Tensor) -> tuple[Any, ...]:
            given, table = self.constant(), torch.stack(everybodys)
            if memory is not None:
                given = memory.settle(self.numbers, rule.told(self.rows(), self.batch(), weight, table))
            dx, _, _, dr, *_ = kernel(*told, pull=given, sums=table, phase=calls.REST)
            return dx if needs[0] else None, dw, db, (g if dr is None else dr) if needs[3] else None, None

        return tuple(sums), end

    def constant(self) -> Pull | None:
        """What takes the derivative's place where the statistics are constants."""
        return _CONSTANT if self.detached or self.stored else None

    def backward(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """One call, or two around what needs the sums; in torch where something watches."""
        given, memory, ranks = self.constant(), self.memory, self.sharing.ranks
        told = self._told(g, x, weight, bias, y, needs) if ranks is None else None
        state: Any = None
        if told is not None and memory is not None:
            given, state = memory.pull(self.numbers)
        if told is None or (memory is not None and given is None):
            sums, end = self.begin(g, x, weight, bias, y, needs)
            return end(*(sums if ranks is None else ranks.sums(*sums)))
        if memory is None:
            dx, dw, db, dr, *_ = self.kernel(*told, pull=given)
        else:
            (dx, dw, db, dr), brought = self._brought(told, weight, given)
            memory.learn(state, self.numbers, brought, given)
        return dx if needs[0] else None, dw, db, (g if dr is None else dr) if needs[3] else None, None

    def _brought(self, told: Any, weight: Any, given: Pull | None) -> tuple[Any, rule.Sums]:
        """The gradients, and all that the memory asks of the data."""
        *found, table, finite = self.kernel(*told, pull=given, means=True)
        batch, rows = self.batch(), Later(self.rows)
        some: Any = True if self.values is not None else batch.count > 0
        return found, rule.Sums(rows, batch, weight, table, some, finite)  # pyright: ignore[reportArgumentType]

    def _told(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """What a native backward is told, or None where a kernel cannot read all of it, as owners may have moved it."""
        like, saved = x if x is not None else y, self.saved
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None and t.numel() != saved.channels:  # pyright: ignore[reportOptionalMemberAccess]
                require_unchanged(self.layer, name, t, torch.Size((saved.channels,)))  # pyright: ignore
        if not (native.unwatched() and self.reads(g) and self.reads(like)):
            return None
        if like.shape != g.shape:
            require_unchanged(self.layer, "input", like, g.shape)
        if not (self.affine(weight, bias, like) and native.laid_out(like, self.last)):
            return None
        source = calls.INVERT if self.inplace else calls.OUTPUT if y is not None else calls.RECOMPUTE
        wants = needs[0], weight is not None and needs[1], bias is not None and needs[2]
        return self.spec, native.like(g, like), x, y, self.last, weight, bias, self.sharing.weight, saved, source, wants

    def batch(self, pooled: bool = False) -> Moments:
        """The moments of each group, or of all together."""
        squares = None if self.sharing.weight is None and self.sharing.ranks is None else 1
        flat = pooled and self.sharing.groups == 1
        found = SavedMoments(self.saved, flat, squares, self.sharing.reliability)
        return found.pool() if pooled and not flat else found

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        numbers, is_number = self.numbers, rule.is_number
        n: Any = or_one(row(0)) if self.values is None else self.values
        own_u, own_v = (0.0, 0.0) if self.constant() else (numbers.mean, row(7) * n if numbers.log else numbers.share)
        limited = not (is_number(numbers.low, 1) and is_number(numbers.high, 1))
        ratio, follow = (row(8), row(12)) if limited else (None, None)
        offset = None if is_number(numbers.shift, 0) else row(9)
        return Rows(n, row(4), row(5), row(6), own_u, own_v, ratio, follow, offset)

    @property
    def plan(self) -> Plan:
        """The forward again, in torch."""
        if self.given_plan is not None:
            return self.given_plan
        again, uneven = (self.numbers, self.vectors), self.sharing.uneven or self.sharing.weight is not None
        return Plan(lambda _: again, self.layer.eps, self.detached or self.stored, uneven)


_CONSTANT = Pull()


class Step(torch.autograd.Function):
    """The forward of a call and its backward; second derivatives go through the spelled forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, residual: Any, call: Any) -> Tensor:
        """Keep x, or the output alone in the in-place form, or both where the activation saw a residual."""
        y = call.forward(x, weight, bias, residual)
        keeps_y = call.inplace or (residual is not None and call.activation is not None)
        # The same number of tensors in a recomputed forward: channel vectors ride on the context.
        ctx.save_for_backward(None if call.inplace else x, weight, bias, y if keeps_y else None, call.sharing.weight)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """The rule's pull, or autograd through `spelled` when a second derivative is wanted."""
        x, weight, bias, y, _ = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return respelled(ctx.call, grads[0], x, weight, bias, y, ctx.needs_input_grad)
        return ctx.call.backward(grads[0], x, weight, bias, y, ctx.needs_input_grad)


# Function.apply looks for a transform's wrappers first, which no native call meets.
_apply: Any = super(torch.autograd.Function, Step).apply  # pyright: ignore[reportAttributeAccessIssue]


def run(x: Tensor, weight: Any, bias: Any, residual: Tensor | None, call: Any) -> Tensor:
    """The output of one call, with the rule's backward where one may come."""
    if not call.is_native:
        return Step.apply(x, weight, bias, residual, call)  # pyright: ignore[reportReturnType]
    if torch.is_grad_enabled():
        return _apply(x, weight, bias, residual, call)
    return call.forward(x, weight, bias, residual)


def pass_through(
    x: Tensor,
    weight: Any,
    bias: Any,
    plan: Plan,
    batch: Moments,
    sharing: Sharing,
    memory: Any = None,
    slope: float | None = None,
    run: Any = run,
) -> Tensor:
    """Normalise by the passes, or in operations where what normalises is learned. With a slope, in place."""
    numbers, vectors, rows = plan.rows(batch)
    if any(isinstance(t, Tensor) and t.requires_grad for t in rows):
        if memory is None:
            return spelled(x, weight, bias, plan, sharing)
        # A backward of its own takes the numbers as constants.
        detached: Any = (t.detach() if isinstance(t, Tensor) else t for t in rows)
        rows = Rows(*detached)
    call = Passing(sharing, plan, numbers, vectors, batch, rows, memory)
    if slope is not None:
        call = call._replace(activation="leaky_relu", slope=slope, inplace=True)
    return run(x, weight, bias, None, call)
