"""One step of normalisation: the moments, the rule, the passes, and the way back.

`spelled` is plain differentiable torch, which compilers, functorch, forward-mode AD and second derivatives use. `Step`
keeps x and channel vectors and goes back by the rule's pull.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.kernels import RawMoments, reference
from batchnorm.layers import rule
from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import Numbers, Pull, Rows, Sums, Vectors


class Sharing(NamedTuple):
    """Who shares statistics in this call: groups of samples, the mask or weights, and what weights mean."""

    groups: int = 1
    weight: Tensor | None = None
    reliability: bool = False
    centres: bool = True
    ranks: Any = None
    # Whether a group may hold nothing, or one value, whatever the shape says: padding, or an empty rank.
    uneven: bool = False

    def moments(self, x: Tensor, reduce: Callable[..., RawMoments], traced: bool = False) -> Moments:
        """The moments of x, of all ranks together, about zero where no mean is subtracted."""
        raw = reduce(x, self.weight, self.groups, self.centres)
        found = Moments(raw.count, raw.mean, raw.m2, raw.count_squared, self.reliability)
        if self.ranks is None:
            return found
        return self.ranks.traced_pool(found) if traced else self.ranks.pool(found)


def batch_moments(x: Tensor, sharing: Sharing) -> Moments:
    """The moments of a batch `(N, C, *)` per group, outside autograd."""
    with torch.no_grad():
        return sharing.moments(x, kernels.select(x).reduce)


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

    def rows(self, batch: Moments) -> tuple[Numbers, Vectors, Rows]:
        """The numbers, and what they come to for this batch."""
        numbers, vectors = self.numbers_of(batch)
        rows = rule.plan(batch, numbers, vectors, self.eps)
        if self.detached:
            rows = rule.constants(rows)
        if self.uneven:
            # An empty group has no variance: a NaN of its population must not reach the weight's gradient as 0 * NaN.
            rows = rule.instead(rows, batch.count == 0, 0.0, 1.0, self.eps)
        if self.for_few is not None:
            rows = rule.instead(rows, batch.few, *self.for_few, self.eps)._replace(few=batch.few)
        return numbers, vectors, rows


def spelled(x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, sharing: Sharing) -> Tensor:
    """Normalise in operations that autograd, compilers and transforms follow."""
    rows = plan.rows(sharing.moments(x, reference.reduce, traced=True))[2]
    return reference.apply(x, rows.mean, *rule.affine(rows, weight, bias), sharing.weight)


class Call(NamedTuple):
    """One forward, and what its backward needs beside the tensors saved."""

    sharing: Sharing
    plan: Plan
    batch: Moments
    numbers: Numbers
    vectors: Vectors
    rows: Rows
    # Of a coupling whose backward is not the derivative: what takes its place, from the sums.
    pull: Callable[[Rows, Numbers, Sums], Pull] | None
    learned: tuple[str, ...]


def four_passes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    batch: Moments,
    sharing: Sharing,
    pull: Callable[[Rows, Numbers, Sums], Pull] | None = None,
) -> Tensor:
    """Normalise with the rule's own backward; gradients reach numbers and vectors that require one."""
    numbers, vectors, rows = plan.rows(batch)
    every = {**numbers._asdict(), **vectors._asdict()}
    learned = {name: t for name, t in every.items() if isinstance(t, Tensor) and t.requires_grad}
    if learned:
        detached: Any = (t.detach() if isinstance(t, Tensor) else t for t in rows)
        rows = Rows(*detached)
    call = Call(sharing, plan, batch, numbers, vectors, rows, pull, tuple(learned))
    return Step.apply(x, weight, bias, call, *learned.values())  # pyright: ignore


class Step(torch.autograd.Function):
    """`apply` forward; `backward_reduce` and `backward_apply` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, call: Call, *learned: Tensor) -> Tensor:
        """Keep x and the plan's vectors."""
        # The same number of tensors in a recomputed forward: channel vectors ride on the context.
        ctx.save_for_backward(x, weight, bias, call.sharing.weight)
        ctx.call, ctx.learned = call, learned
        rows = call.rows
        return kernels.select(x).apply(x, rows.mean, *rule.affine(rows, weight, bias), call.sharing.weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """The rule's pull, or autograd through `spelled` when a second derivative is wanted."""
        (g,) = grads
        x, weight, bias, sample_weight = ctx.saved_tensors
        call: Call = ctx.call
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _respelled(ctx, call, g, x, weight, bias)
        rows, ranks, passes = call.rows, call.sharing.ranks, kernels.select(x)
        sum_g, sum_gx = passes.backward_reduce(g, x, rows.mean, rows.invstd, sample_weight)
        # Weight and bias get this rank's share, as DDP expects; the statistics got everybody's.
        all_g, all_gx = (sum_g, sum_gx) if ranks is None else ranks.sums(sum_g, sum_gx)
        given = None
        if call.pull is not None:
            given = call.pull(rows, call.numbers, rule.told(rows, call.batch, weight, all_g, all_gx))
        scale, u, v = rule.pull(rows, weight, all_g, all_gx, given)
        dx = None
        if needs[0]:
            # The batch alone makes statistics that are not finite where x is not; others may leave it out.
            may_leave_out = call.pull is not None or not rule.is_number(rows.own_v, 1)
            dx = passes.backward_apply(g, x, rows.centre, scale, u, v, sample_weight, may_leave_out)
        dw, db = rule.parameters(rows, sum_g, sum_gx)
        dw = dw.to(weight.dtype) if weight is not None and needs[1] else None
        db = db.to(bias.dtype) if bias is not None and needs[2] else None
        found: list[Any] = [None] * len(ctx.learned)
        if any(needs[4:]):
            onto = rule.onto(call.batch, call.numbers, call.vectors, rows, scale, all_g, all_gx)
            found = [onto[name].sum_to_size(t.shape) for name, t in zip(call.learned, ctx.learned, strict=True)]
        return dx, dw, db, None, *found


def _respelled(ctx: Any, call: Call, g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
    """The gradients with a graph of their own, through operations."""
    if call.pull is not None:
        raise BatchNormError(
            "create_graph must be False for a coupling whose backward uses running averages; it was True"
        )
    every: Any = (x, weight, bias, None, *ctx.learned)
    needs = [t is not None and t.requires_grad for t in every]
    inputs = [t for t, needed in zip(every, needs, strict=True) if needed]
    plan = call.plan
    if ctx.learned:
        plan = plan._replace(numbers_of=lambda _: (call.numbers, call.vectors))
    y = spelled(x, weight, bias, plan, call.sharing)
    found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
    return tuple(next(found) if needed else None for needed in needs)


def needs_spelling(x: Tensor) -> bool:
    """Whether a transform, a compiler, `torch.jit.trace` or forward-mode AD must see the operations themselves."""
    return torch.compiler.is_compiling() or tracing() or transformed()
