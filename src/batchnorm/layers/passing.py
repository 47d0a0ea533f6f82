"""Normalisation by the four passes, with the rule in torch between them.

`spelled` is plain differentiable torch, which compilers, functorch, forward-mode AD and second derivatives use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.kernels import RawMoments, reference
from batchnorm.kernels.shapes import or_one
from batchnorm.layers import rule
from batchnorm.layers.activation import activate, gated
from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.moments import Moments
from batchnorm.layers.processes.traced import traced_pool
from batchnorm.layers.rule import Numbers, Rows, Vectors


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
            rows = Rows(or_one(batch.count), mean, invstd, batch.mean, 1.0, 1.0, var=var)
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
    return -of_mean / or_one(batch.count), -2 * of_m2


def spelled(x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, sharing: Sharing) -> Tensor:
    """Normalise in operations that autograd, compilers and transforms follow."""
    found = sharing.own_moments(x, reference.reduce)
    if sharing.ranks is not None:
        found = traced_pool(found, sharing.ranks.group)
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
    activation: str | None = None
    slope: float = 0.0
    inplace: bool = False
    is_native: bool = False

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output, with the activation of the in-place form."""
        y = kernels.select(x).apply(x, self.rows.mean, *rule.affine(self.rows, weight, bias), self.sharing.weight)
        return torch.nn.functional.leaky_relu_(y, self.slope) if self.inplace else y

    def begin(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """The sums of g and of g * xhat; and what makes of everybody's the gradients of what `Step.apply` was given."""
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
                table = torch.stack((all_g, all_gx))
                given = self.memory.settle(self.numbers, rule.told(rows, self.batch, weight, table))
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
            return dx, dw, db, behind if needs[3] else None, None

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


def respelled(call: Any, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> tuple[Any, ...]:
    """The gradients with a graph of their own, through operations."""
    if call.inplace:
        raise BatchNormError("create_graph must be False with inplace=True, which keeps its output alone; it was True")
    if call.memory is not None:
        raise BatchNormError(
            "create_graph must be False for a coupling whose backward uses running averages; it was True"
        )
    again = spelled(x, weight, bias, call.plan, call.sharing)
    if y is None:
        again = activate(again, call.activation, call.slope, None)
    else:
        g = gated(g, y, call.activation, call.slope)
    every: Any = (x, weight, bias, None, None)
    wanted = [t is not None and needed for t, needed in zip(every, needs, strict=True)]
    inputs = [t for t, want in zip(every, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(again, inputs, g, create_graph=True)) if inputs else iter(())
    grads = [next(found) if want else None for want in wanted]
    grads[3] = g if needs[3] else None
    return tuple(grads)


def needs_spelling(x: Tensor) -> bool:
    """Whether a transform, a compiler, `torch.jit.trace` or forward-mode AD must see the operations themselves."""
    return torch.compiler.is_compiling() or tracing() or transformed()
