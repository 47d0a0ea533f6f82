"""One step of normalisation: the moments, the rule, the passes, and the way back.

`spelled` is plain differentiable torch, which compilers, functorch, forward-mode AD and second derivatives use. `Step`
keeps x (or the output alone) and channel vectors and goes back by the rule's pull, natively or by the passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.kernels import RawMoments, calls, native, reference
from batchnorm.layers import rule
from batchnorm.layers.activation import activate, gated
from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import require_unchanged, usable
from batchnorm.layers.rule import Move, Numbers, Pull, Rows, Vectors


class Sharing(NamedTuple):
    """Who shares statistics in this call: groups of samples, the mask or weights, and what weights mean."""

    groups: int = 1
    weight: Tensor | None = None
    reliability: bool = False
    centres: bool = True
    ranks: Any = None
    # Whether a group may hold nothing, or one value, whatever the shape says: padding, or an empty rank.
    uneven: bool = False

    def own_moments(self, x: Tensor, reduce: Callable[..., RawMoments]) -> Moments:
        """The moments of x, about zero where no mean is subtracted."""
        raw = reduce(x, self.weight, self.groups, self.centres)
        return Moments(raw.count, raw.mean, raw.m2, raw.count_squared, self.reliability)


def batch_moments(x: Tensor, sharing: Sharing) -> Moments:
    """The moments of a batch `(N, C, *)` per group, of all ranks together, outside autograd."""
    with torch.no_grad():
        found = sharing.own_moments(x, kernels.select(x).reduce)
        return found if sharing.ranks is None else sharing.ranks.pool(found)


class Plan(NamedTuple):
    """How a batch is normalised once its moments are known."""

    numbers_of: Callable[[Moments], tuple[Numbers, Vectors]]
    eps: float
    # Whether the statistics are constants to the gradient.
    detached: bool = False
    # Whether a group may be empty.
    uneven: bool = False
    # Mean and variance that groups of one value meet instead of their own.
    for_few: tuple[Tensor, Tensor] | None = None
    # In the place of the numbers: mean and variance as any function of the moments.
    statistics_of: Callable[[Moments], tuple[Tensor, Tensor]] | None = None

    def rows(self, batch: Moments) -> tuple[Numbers, Vectors, Rows]:
        """The numbers, and what they come to for this batch."""
        if self.statistics_of is None:
            numbers, vectors = self.numbers_of(batch)
            rows = rule.plan(batch, numbers, vectors, self.eps)
        else:
            numbers, vectors, (mean, var) = Numbers(), Vectors(), self.statistics_of(batch)
            invstd = torch.rsqrt(var + self.eps)
            rows = Rows(rule.or_one(batch.count), mean, invstd, batch.mean, 1.0, 1.0, var=var)
        if self.detached:
            rows = rule.constants(rows)
        if self.uneven:
            # An empty group has no variance: a NaN of its population must not reach the weight's gradient as 0 * NaN.
            rows = rule.instead(rows, batch.count == 0, 0.0, 1.0, self.eps)
        if self.for_few is not None:
            rows = rule.instead(rows, batch.few, *self.for_few, self.eps)._replace(few=batch.few)
        return numbers, vectors, rows


def _through(
    statistics_of: Callable[[Moments], tuple[Tensor, Tensor]], batch: Moments, onto_mean: Tensor, onto_var: Tensor
) -> tuple[Tensor, Tensor]:
    """U and v of dx, by autograd from the statistics to the moments."""
    with torch.enable_grad():
        mean, m2 = (t.detach().clone().requires_grad_() for t in (batch.mean, batch.m2))
        made = statistics_of(replace(batch, mean=mean, m2=m2))
        rows = [(t, onto.expand_as(t)) for t, onto in zip(made, (onto_mean, onto_var), strict=True) if t.requires_grad]
        grads: Any = (None, None)
        if rows:
            grads = torch.autograd.grad([t for t, _ in rows], (mean, m2), [g for _, g in rows], allow_unused=True)
    of_mean, of_m2 = (torch.zeros_like(mean) if g is None else g for g in grads)
    return -of_mean / rule.or_one(batch.count), -2 * of_m2


def spelled(x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, sharing: Sharing) -> Tensor:
    """Normalise in operations that autograd, compilers and transforms follow."""
    found = sharing.own_moments(x, reference.reduce)
    if sharing.ranks is not None:
        found = sharing.ranks.traced_pool(found)
    rows = plan.rows(found)[2]
    return reference.apply(x, rows.mean, *rule.affine(rows, weight, bias), sharing.weight)


class Passing(NamedTuple):
    """A forward by the four passes of whatever backend there is, with the rows made before it."""

    sharing: Sharing
    plan: Plan
    numbers: Numbers
    vectors: Vectors
    batch: Moments
    rows: Rows
    # Of a coupling whose backward is not the derivative: what takes its place, asked again once the sums are there.
    memory: Any = None
    learned: tuple[str, ...] = ()
    activation: str | None = None
    slope: float = 0.0
    inplace: bool = False
    is_native: bool = False

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output, with the activation of the in-place form."""
        y = kernels.select(x).apply(x, self.rows.mean, *rule.affine(self.rows, weight, bias), self.sharing.weight)
        return torch.nn.functional.leaky_relu_(y, self.slope) if self.inplace else y

    def begin(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """The sums of g and of g * xhat; and what makes of everybody's the gradients of x, weight, bias and residual.

        Then come those of the numbers and vectors that are learned.
        """
        rows, w, passes = self.rows, self.sharing.weight, kernels.select(y if x is None else x)
        data: Any = x
        mean, unit, centre, seen = rows.mean, rows.invstd, rows.centre, y
        if self.inplace:
            mean, unit, data = _inverted(rows, weight, bias, y, self.slope)
            centre = mean
        elif y is None and self.activation is not None:
            seen = reference.apply(data, mean, *rule.affine(rows, weight, bias), w)
        behind = g if self.activation is None else gated(g, seen, self.activation, self.slope)
        sum_g, sum_gx = passes.backward_reduce(behind, data, mean, unit, w)

        def end(all_g: Tensor, all_gx: Tensor) -> tuple[Any, ...]:
            given = None
            if self.memory is not None:
                sums = rule.told(rows, self.batch, weight, all_g, all_gx)
                at = self.memory.open()
                given = self.memory.pull(at, self.numbers, sums)
                self.memory.learn(at, self.numbers, sums, given)
            scale, u, v = rule.pull(rows, weight, all_g, all_gx, given)
            statistics_of = self.plan.statistics_of
            if statistics_of is not None:
                u, v = _through(statistics_of, self.batch, -scale * all_g, -0.5 * scale * rows.invstd * all_gx)
            if self.inplace:
                v = v / rows.invstd * unit
            dx = None
            if needs[0]:
                # The batch alone makes statistics that are not finite where x is not; others may leave it out.
                may_leave_out = given is not None or not rule.is_number(rows.own_v, 1)
                dx = passes.backward_apply(behind, data, centre, scale, u, v, w, may_leave_out)
            # Weight and bias get this rank's share, as DDP expects; the statistics got everybody's.
            dw, db = rule.parameters(rows, sum_g, sum_gx)
            dw = dw.to(weight.dtype) if weight is not None and needs[1] else None
            db = db.to(bias.dtype) if bias is not None and needs[2] else None
            found: list[Any] = []
            if learned:
                onto = rule.onto(self.batch, self.numbers, self.vectors, rows, scale, all_g, all_gx)
                found = [onto[name].sum_to_size(t.shape) for name, t in zip(self.learned, learned, strict=True)]
            return dx, dw, db, behind if needs[3] else None, *found

        return (sum_g, sum_gx), end

    def backward(self, *told: Any) -> tuple[Any, ...]:
        """Both, around the one sum over ranks."""
        sums, end = self.begin(*told)
        return end(*(sums if self.sharing.ranks is None else self.sharing.ranks.sums(*sums)))


def _inverted(rows: Rows, weight: Any, bias: Any, y: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """The data found again from the output: xhat is `(z - mean) * unit`, z what the activation was given."""
    one, zero = torch.ones_like(rows.invstd), torch.zeros_like(rows.invstd)
    gamma = one if weight is None else weight.to(one.dtype).expand_as(one)
    beta = zero if bias is None else bias.to(one.dtype).expand_as(one)
    return beta, 1 / gamma, torch.where(y <= 0, y / slope, y)


class Native:
    """A forward in one native call, or in what follows the moments where they are given; likewise backward."""

    __slots__ = (
        "activation", "detached", "handed_in", "inplace", "last", "layer", "learned", "memory", "moves", "numbers",
        "plan", "saved", "sharing", "slope", "spec", "statistics", "status", "stored", "vectors",
    )  # fmt: skip

    is_native = True

    def __init__(self, layer: Any, last: bool, sharing: Sharing, numbers: Numbers, vectors: Vectors) -> None:
        self.layer, self.last, self.sharing, self.numbers, self.vectors = layer, last, sharing, numbers, vectors
        self.saved: calls.Saved | None = None
        self.statistics: calls.Statistics | None = None
        self.memory: Any = None
        self.plan: Any = None
        self.detached = self.inplace = self.moves = self.stored = False
        self.learned = ()
        self.activation: str | None = None
        self.slope, self.status = 0.0, 0

    def prepare(self, move: Move, nonfinite: str) -> None:
        """Everything in the extension's terms."""
        k, s, v = move, self.sharing, self.vectors
        plain = v.pm is None and v.pv is None and v.rest is None and k.from_mean is None
        self.handed_in = calls.NONE if plain else calls.Vectors(*v, k.from_mean, k.from_var)
        slope = self.slope if self.activation == "leaky_relu" else 0.0
        self.spec = calls.spec(
            *self.numbers, k.gain, k.q, k.p, k.r, k.root, k.correction, self.layer.eps, s.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), slope, s.reliability, calls.NONFINITE.index(nonfinite),
        )  # fmt: skip
        self.slope = slope

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """One call; `saved` has the channel vectors then, `status` what became of the statistics."""
        y, w, v = None, self.sharing.weight, self.vectors
        if self.stored and self.activation is None and residual is None and w is None:
            # torch's own output, to the last bit: `to_stock` promises it, and only its backward is slow.
            y = _by_torch(x, weight, bias, self.layer, v)
        y, self.saved, self.status = calls.forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, w, self.handed_in, self.statistics,
            self.moves, y, self.saved,
        )  # fmt: skip
        return y

    def begin(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """As `Passing.begin`, in two calls."""
        told = self._told(g, x, weight, bias, y, needs)
        if told is None:
            return self._in_torch().begin(g, x, weight, bias, y, needs, learned)
        _, dw, db, _, sums = calls.backward(*told, phase=calls.SUMS)

        def end(*everybodys: Tensor) -> tuple[Any, ...]:
            given, memory = self._constant(), self.memory
            if memory is not None:
                brought = self._brought(weight, everybodys)
                at = memory.open()
                given = memory.pull(at, self.numbers, brought)
                memory.learn(at, self.numbers, brought, given)
            dx, _, _, dr, _ = calls.backward(*told, pull=given, sums=torch.stack(everybodys), phase=calls.REST)
            return dx if needs[0] else None, dw, db, (g if dr is None else dr) if needs[3] else None

        return tuple(sums), end

    def backward(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """One call, or two around what needs the sums; in torch where something watches."""
        given, memory, ranks = self._constant(), self.memory, self.sharing.ranks
        told = self._told(g, x, weight, bias, y, needs) if ranks is None else None
        at: Any = None
        if told is not None and memory is not None:
            at = memory.open()
            given = memory.pull(at, self.numbers, None)
        if told is None or (memory is not None and given is None):
            sums, end = self.begin(g, x, weight, bias, y, needs, learned)
            return end(*(sums if ranks is None else ranks.sums(*sums)))
        dx, dw, db, dr, sums = calls.backward(*told, pull=given)
        if memory is not None:
            memory.learn(at, self.numbers, self._brought(weight, sums), given)
        return dx if needs[0] else None, dw, db, (g if dr is None else dr) if needs[3] else None

    def _constant(self) -> Pull | None:
        return Pull() if self.detached or self.stored else None

    def _told(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """What a native backward is told, or None where it cannot read all of it."""
        like = x if x is not None else y
        if not self._readable(g, like, weight, bias):
            return None
        source = calls.INVERT if self.inplace else calls.OUTPUT if y is not None else calls.RECOMPUTE
        wants = needs[0], weight is not None and needs[1], bias is not None and needs[2]
        w = self.sharing.weight
        return self.spec, native.like(g, like), x, y, self.last, weight, bias, w, self.saved, source, wants

    def _readable(self, g: Tensor, like: Tensor, weight: Any, bias: Any) -> bool:
        """Whether a kernel may read all that the forward left; owners may have moved it since.

        Raises:
            OperandError: a tensor of another size than in the forward.
        """
        channels = self.saved.channels  # pyright: ignore[reportOptionalMemberAccess]
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None and t.numel() != channels:
                require_unchanged(self.layer, name, t, torch.Size((channels,)))
        if not (native.unwatched() and native.plain(g) and native.plain(like)):
            return False
        require_unchanged(self.layer, "input", like, g.shape)
        return usable(weight, bias, like) and native.laid_out(like, self.last)

    def batch(self) -> Moments:
        """The moments of each group."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        # Without weights it is the count.
        squares = None if self.sharing.weight is None and self.sharing.ranks is None else row(1)
        return Moments(row(0), row(2), row(3), squares, self.sharing.reliability)

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        numbers, n = self.numbers, row(0) if self._full() else rule.or_one(row(0))
        own_u, own_v = (0.0, 0.0) if self.detached or self.stored else (self.numbers.mean, self.numbers.share)
        if self.numbers.log:
            own_v = row(7) * n
        limited = not numbers.low == numbers.high == 1
        ratio = row(8) if limited and not numbers.quiet else None
        follow = row(12) if limited and numbers.quiet else None
        offset = None if numbers.shift == 0 else row(9)
        return Rows(n, row(4), row(5), row(6), own_u, own_v, ratio, follow, offset)

    def _full(self) -> bool:
        """Whether no group can be without values."""
        return self.sharing.weight is None and not self.sharing.uneven

    def _brought(self, weight: Any, sums: Any) -> rule.Sums:
        """All that the memory asks of the data."""
        return rule.told(self.rows(), self.batch(), weight, *sums, full=self._full())

    def _in_torch(self) -> Passing:
        """The same by the passes, where g is no plain tensor (vmap over gradients, a mode)."""
        plan: Any = self.plan
        given = self.sharing, plan, self.numbers, self.vectors, self.batch(), self.rows(), self.memory
        return Passing(*given, (), self.activation, self.slope, self.inplace)


def _by_torch(x: Tensor, weight: Any, bias: Any, layer: Any, vectors: Vectors) -> Tensor:
    mean, var = layer.stat("running_mean"), layer.stat("running_var")
    narrow, dtype = (torch.float16, torch.bfloat16), mean.dtype
    weight, bias = (v if v is None or v.dtype not in narrow else v.to(dtype) for v in (weight, bias))
    nothing = torch.empty(2, 0, dtype=dtype if x.dtype in narrow else x.dtype, device="cpu").unbind(0)
    y = native.blank(x)
    torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, layer.eps, out=(y, *nothing))
    return y


def run(x: Tensor, weight: Any, bias: Any, residual: Tensor | None, call: Any, learned: Any = ()) -> Tensor:
    """The output of one call, with the rule's backward where one may come."""
    if not call.is_native:
        return Step.apply(x, weight, bias, residual, call, *learned)  # pyright: ignore[reportReturnType]
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
    """Normalise by the passes; gradients reach numbers and vectors that require one. With a slope, in place."""
    numbers, vectors, rows = plan.rows(batch)
    every = {**numbers._asdict(), **vectors._asdict()}
    learned = {name: t for name, t in every.items() if isinstance(t, Tensor) and t.requires_grad}
    if learned:
        detached: Any = (t.detach() if isinstance(t, Tensor) else t for t in rows)
        rows = Rows(*detached)
    call = Passing(sharing, plan, numbers, vectors, batch, rows, memory, tuple(learned))
    if slope is not None:
        call = call._replace(activation="leaky_relu", slope=slope, inplace=True)
    return run(x, weight, bias, None, call, learned.values())


class Step(torch.autograd.Function):
    """The forward of a call and its backward; second derivatives go through the spelled forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, residual: Any, call: Any, *learned: Tensor) -> Tensor:
        """Keep x, or the output alone in the in-place form, or both where the activation saw a residual."""
        y = call.forward(x, weight, bias, residual)
        keeps_y = call.inplace or (residual is not None and call.activation is not None)
        # The same number of tensors in a recomputed forward: channel vectors ride on the context.
        ctx.save_for_backward(None if call.inplace else x, weight, bias, y if keeps_y else None, call.sharing.weight)
        ctx.call, ctx.learned = call, learned
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """The rule's pull, or autograd through `spelled` when a second derivative is wanted."""
        (g,) = grads
        x, weight, bias, y, _ = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return respelled(ctx.call, g, x, weight, bias, y, needs, ctx.learned)
        found = ctx.call.backward(g, x, weight, bias, y, needs, ctx.learned)
        return *found[:4], None, *found[4:]


# Function.apply looks for a transform's wrappers first, which no native call meets.
_apply: Any = super(torch.autograd.Function, Step).apply  # pyright: ignore[reportAttributeAccessIssue]


def respelled(
    call: Any, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: tuple[Tensor, ...]
) -> tuple[Any, ...]:
    """The gradients with a graph of their own, through operations."""
    if call.inplace:
        raise BatchNormError("create_graph must be False with inplace=True, which keeps its output alone; it was True")
    if call.memory is not None:
        raise BatchNormError(
            "create_graph must be False for a coupling whose backward uses running averages; it was True"
        )
    plan = call.plan
    if learned:
        plan = plan._replace(numbers_of=lambda _: (call.numbers, call.vectors))
    again = spelled(x, weight, bias, plan, call.sharing)
    if y is None:
        again = activate(again, call.activation, call.slope, None)
    else:
        g = gated(g, y, call.activation, call.slope)
    every: Any = (x, weight, bias, None, None, *learned)
    wanted = [t is not None and needed for t, needed in zip(every, needs, strict=True)]
    inputs = [t for t, want in zip(every, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(again, inputs, g, create_graph=True)) if inputs else iter(())
    grads = [next(found) if want else None for want in wanted]
    grads[3] = g if needs[3] else None
    return tuple(grads)


def needs_spelling(x: Tensor) -> bool:
    """Whether a transform, a compiler, `torch.jit.trace` or forward-mode AD must see the operations themselves."""
    return torch.compiler.is_compiling() or tracing() or transformed()
