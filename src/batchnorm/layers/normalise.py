"""The training forward of every coupling, in two spellings that must agree.

`spelled` is plain differentiable torch: what compilers, functorch, forward-mode AD and double
backward use. `FourPasses` keeps only x and channel vectors and applies the backward rule
dx = scale * (g - a mean(g) - a c mean(g xhat)), a = share, c = (x - centre) / S, or the coupling's
own u and v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.kernels import RawMoments, reference
from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.couplings import Plan, Returned
from batchnorm.layers.moments import Moments
from batchnorm.layers.ranks import Ranks, TracedRanks


class Sharing(NamedTuple):
    """Who shares statistics in this call: groups of samples, the mask or weights, and what weights mean."""

    groups: int = 1
    weight: Tensor | None = None
    reliability: bool = False
    centres: bool = True
    ranks: Ranks | TracedRanks | None = None
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


def _affine(plan: Plan, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """invstd, and scale and shift of the output, with the plan's ratio and offset folded in."""
    invstd = torch.rsqrt(plan.var + eps)
    scale = invstd if plan.ratio is None else invstd * plan.ratio
    shift = torch.zeros_like(invstd) if plan.offset is None else plan.offset
    if weight is not None:
        scale, shift = scale * weight.to(invstd.dtype), shift * weight.to(invstd.dtype)
    return invstd, scale, shift if bias is None else shift + bias.to(invstd.dtype)


def spelled(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan_of: Callable[[Moments], Plan],
    sharing: Sharing,
    eps: float,
) -> Tensor:
    """Normalise in operations that autograd, compilers and transforms follow."""
    found = sharing.moments(x, reference.reduce, traced=True)
    plan = _where_present(plan_of(found), found, sharing)
    _, scale, shift = _affine(plan, weight, bias, eps)
    return reference.apply(x, plan.mean, scale, shift, sharing.weight)


def _where_present(plan: Plan, batch: Moments, sharing: Sharing) -> Plan:
    """A group that is empty has no variance: its NaN must not reach the gradient of weight as 0 * NaN."""
    if not sharing.uneven:
        return plan
    empty = batch.count == 0
    ones = {
        name: torch.where(empty, 1.0, value)
        for name in ("var", "ratio", "grad_ratio")
        if (value := getattr(plan, name)) is not None
    }
    zeros = {
        name: torch.where(empty, 0.0, value)
        for name in ("mean", "centre", "offset")
        if (value := getattr(plan, name)) is not None
    }
    return plan._replace(**ones, **zeros)


class Backward(NamedTuple):
    """What the backward pass needs beside tensors saved: how to spell it out, and the coupling's own rule."""

    respell: Callable[[Tensor, Tensor | None, Tensor | None], Tensor] | None
    pull: Callable[[Returned], tuple[Tensor, Tensor]] | None
    # Weights of the layer before, where the plan's statistics follow them.
    source: Tensor | None = None


def four_passes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    batch: Moments,
    sharing: Sharing,
    eps: float,
    backward: Backward,
) -> Tensor:
    """Normalise with a plan made outside autograd."""
    plan = _where_present(plan, batch, sharing)
    return FourPasses.apply(x, weight, bias, backward.source, plan, batch, sharing, eps, backward)  # pyright: ignore


class FourPasses(torch.autograd.Function):
    """`apply` forward; `backward_reduce` and `backward_apply` backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        source: Tensor | None,
        plan: Plan,
        batch: Moments,
        sharing: Sharing,
        eps: float,
        backward: Backward,
    ) -> Tensor:
        """Keep x and the plan's vectors."""
        invstd, scale, shift = _affine(plan, weight, bias, eps)
        # The same number of tensors in a recomputed forward: channel vectors ride on the context.
        ctx.save_for_backward(x, weight, bias, sharing.weight)
        ctx.plan, ctx.batch, ctx.ranks, ctx.invstd, ctx.rule = plan, batch, sharing.ranks, invstd, backward
        return kernels.select(x).apply(x, plan.mean, scale, shift, sharing.weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """The coupling's rule, or autograd through `spelled` when a second derivative is wanted."""
        (g,) = grads
        x, weight, bias, sample_weight = ctx.saved_tensors
        nothing = (None,) * 5
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if ctx.rule.respell is None:
                raise BatchNormError(
                    "create_graph must be False for a coupling whose backward uses running averages; it was True"
                )
            all_inputs = (x, weight, bias, ctx.rule.source)
            inputs = [t for t in all_inputs if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(ctx.rule.respell(x, weight, bias), inputs, g, create_graph=True))
            return *(next(found) if t is not None and t.requires_grad else None for t in all_inputs), *nothing
        plan, invstd = ctx.plan, ctx.invstd
        passes = kernels.select(x)
        sum_g, sum_gx = passes.backward_reduce(g, x, plan.mean, invstd, sample_weight)
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        for ratio in (plan.ratio, plan.grad_ratio):
            scale = scale if ratio is None else scale * ratio
        # Weight and bias get this rank's share, as DDP expects; the statistics got everybody's.
        all_g, all_gx = (sum_g, sum_gx) if ctx.ranks is None else ctx.ranks.sums(sum_g, sum_gx)
        # The batch alone makes statistics that are not finite where x is not; others may leave it out.
        may_leave_out = ctx.rule.pull is not None or not (isinstance(plan.share, float) and plan.share == 1)
        if ctx.rule.pull is None:
            a = plan.share / torch.where(ctx.batch.count > 0, ctx.batch.count, 1.0) * scale
            u = a * all_g if plan.centred else torch.zeros_like(all_g)
            v = a * all_gx * invstd
            if may_leave_out:
                alone = torch.as_tensor(plan.share, device=u.device) == 0
                u, v = (torch.where(alone, 0.0, value) for value in (u, v))
        else:
            u, v = ctx.rule.pull(Returned(plan, ctx.batch, invstd, _factor(plan, weight, invstd), all_g, all_gx))
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = passes.backward_apply(g, x, plan.centre, scale, u, v, sample_weight, may_leave_out)
        if weight is not None and ctx.needs_input_grad[1]:
            dw = sum_gx if plan.ratio is None else sum_gx * plan.ratio
            dw = (dw if plan.offset is None else dw + sum_g * plan.offset).sum(0).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            db = sum_g.sum(0).to(bias.dtype)
        ds = None
        if ctx.needs_input_grad[3]:
            # Through the plan's own graph, from its statistics to the weights they follow.
            onto = (-scale * all_g, -0.5 * scale * invstd * all_gx)
            rows = [t.reshape(plan.mean.shape) for t in onto]
            (ds,) = torch.autograd.grad((plan.mean, plan.var), ctx.rule.source, rows, retain_graph=True)
        return dx, dw, db, ds, *nothing


def _factor(plan: Plan, weight: Tensor | None, like: Tensor) -> Tensor:
    """What the gradient at the normalised data is of that at the output; not scale / invstd, which may be 0 / 0."""
    factor = torch.ones_like(like) if weight is None else weight.to(like.dtype).expand_as(like)
    for ratio in (plan.ratio, plan.grad_ratio):
        factor = factor if ratio is None else factor * ratio
    return factor


def needs_spelling(x: Tensor) -> bool:
    """Whether a transform, a compiler, `torch.jit.trace` or forward-mode AD must see the operations themselves."""
    return torch.compiler.is_compiling() or tracing() or transformed()
