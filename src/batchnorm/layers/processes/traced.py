"""The sum over processes in operations that autograd and compilers follow: compiled code and second derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batchnorm.kernels.shapes import or_one
from batchnorm.layers.moments import Moments
from batchnorm.layers.processes.ranks import payload


class Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the gradients. For compilers and second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Add up the ranks' tensors."""
        import torch.distributed._functional_collectives as functional

        ctx.group = group
        everyone: Any = dist.group.WORLD if group is None else group
        return functional.wait_tensor(functional.all_reduce(x.contiguous(), "sum", everyone))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """Add up the ranks' gradients."""
        return Sum.apply(grads[0], ctx.group), None


class TracedRanks:
    """The processes of a layer in compiled code, which waits for no value and cannot read tags or time out."""

    def __init__(self, group: str) -> None:
        self.group = group

    def pool(self, batch: Moments) -> Moments:
        """The moments of all ranks' values."""
        return traced_pool(batch, self.group)


def traced_pool(batch: Moments, group: Any) -> Moments:
    """`pool` in operations that autograd and compilers follow; the shift is the mean of the ranks' means."""
    present = (batch.count > 0).to(batch.mean.dtype)
    local = torch.where(batch.count > 0, batch.mean, 0.0).detach()
    ranks, means = Sum.apply(torch.stack((present, local)), group).unbind(0)  # pyright: ignore
    shift = means / or_one(ranks)
    numbers, sums = payload(batch, shift)
    flat: Any = Sum.apply(torch.cat((numbers, sums.reshape(-1))), group)
    n, squares = flat[0], flat[1]
    first, second = flat[2:].reshape(sums.shape).unbind(0)
    safe = or_one(n)
    mean, m2 = shift + first / safe, (second - first.square() / safe).clamp_min(0)
    return Moments(n.expand_as(mean), mean, m2, squares.expand_as(mean), batch.reliability)
