"""The training forward of every coupling, in two spellings that must agree.

`spelled` is plain differentiable torch: what compilers, functorch, forward-mode AD and double
backward use. `FourPasses` keeps only x and channel vectors and applies the backward rule
dx = scale * (g - a mean(g) - a c mean(g xhat)), a = share, c = (x - centre) / S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.kernels import reference
from batchnorm.layers.couplings import Coupling, Plan
from batchnorm.layers.estimators import Gain, State
from batchnorm.layers.moments import Moments


def batch_moments(x: Tensor) -> Moments:
    """The moments of a batch `(N, C, *)`, outside autograd."""
    with torch.no_grad():
        raw = kernels.select(x).reduce(x, None, 1)
    return Moments(raw.count[0], raw.mean[0], raw.m2[0])


def spelled(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    coupling: Coupling,
    population: State,
    gain: Gain,
    eps: float,
) -> Tensor:
    """Normalise in operations that autograd, compilers and transforms follow."""
    raw = reference.reduce(x, None, 1)
    plan = coupling.plan(Moments(raw.count[0], raw.mean[0], raw.m2[0]), population, gain)
    invstd = torch.rsqrt(plan.var + eps)
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    shift = torch.zeros_like(invstd) if bias is None else bias.to(invstd.dtype)
    return reference.apply(x, plan.mean[None], scale[None], shift[None])


def four_passes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    eps: float,
    respell: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
) -> Tensor:
    """Normalise with a plan made outside autograd; respell is `spelled`, for double backward."""
    return FourPasses.apply(x, weight, bias, plan, eps, respell)  # pyright: ignore[reportReturnType]


class FourPasses(torch.autograd.Function):
    """`apply` forward; `backward_reduce` and `backward_apply` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, eps: float, respell):
        """Keep x and the plan's vectors."""
        invstd = torch.rsqrt(plan.var + eps)
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        shift = torch.zeros_like(invstd) if bias is None else bias.to(invstd.dtype)
        ctx.save_for_backward(x, weight, bias, plan.mean, invstd, plan.centre)
        ctx.share, ctx.respell = plan.share, respell
        return kernels.select(x).apply(x, plan.mean[None], scale[None], shift[None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """The unified rule, or autograd through `spelled` when a second derivative is wanted."""
        (g,) = grads
        x, weight, bias, mean, invstd, centre = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(ctx.respell(x, weight, bias), inputs, g, create_graph=True))
            dx, dw, db = (next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias))
            return dx, dw, db, None, None, None
        passes = kernels.select(x)
        sum_g, sum_gx = passes.backward_reduce(g, x, mean[None], invstd[None])
        n = x.numel() // x.shape[1]
        scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
        u = ctx.share * sum_g / n
        v = ctx.share * sum_gx / n * invstd
        dx = passes.backward_apply(g, x, centre[None], scale[None], u, v) if ctx.needs_input_grad[0] else None
        dw = sum_gx[0].to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        db = sum_g[0].to(bias.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None, None


def needs_spelling(x: Tensor) -> bool:
    """Whether a transform, a compiler or forward-mode AD must see the operations themselves."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch.autograd.forward_ad._current_level >= 0
    )
