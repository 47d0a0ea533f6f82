"""The processes that share a layer's statistics: one sum over ranks forward, one backward, and clear failures.

The engine is `torch.distributed`. What crosses is a float64 vector of O(channels) whatever the
number of ranks: counts, and sums of deviations and squared deviations from a shift that is the same
everywhere because it is set from reduced values only.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.layers.moments import Moments

# Where the squared distance of shift and mean exceeds this many variances, float64 sums lose digits
# that a second reduction about the now known mean keeps.
_FAR = 1e5


class Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the gradients. For compilers and second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Add up the ranks' tensors."""
        ctx.group = group
        return _traceable_sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """Add up the ranks' gradients."""
        return Sum.apply(grads[0], ctx.group), None


def _traceable_sum(x: Tensor, group: Any) -> Tensor:
    import torch.distributed._functional_collectives as functional

    everyone: Any = dist.group.WORLD if group is None else group
    return functional.wait_tensor(functional.all_reduce(x.contiguous(), "sum", everyone))


class Ranks:
    """What one layer says to its counterparts on other ranks.

    A message carries the layer's number beside its sums, so ranks whose layers run in another
    order are told apart at once instead of mixing their statistics.
    """

    def __init__(self, group: Any, timeout: float, signature: dict[str, Any]) -> None:
        self.group, self.timeout, self.signature = group, timeout, signature
        self.where = signature["layer"]
        self.shift: Tensor | None = None
        self._tag = _number(str(signature["layer"]))
        self._calls = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copied or pickled layer greets anew

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _nobody, ()

    def greet(self) -> None:
        """Compare signatures with the other ranks before the first message."""
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, self.signature, group=self.group)
        for rank, other in enumerate(everyone):
            if other != self.signature:
                differ = [key for key in self.signature if self.signature[key] != other.get(key)]
                told = "; ".join(f"{key}: {self.signature[key]} here, {other.get(key)} there" for key in differ)
                raise BatchNormError(
                    f"rank {rank} must have the same layer at this place as rank {dist.get_rank()}: {told}"
                )

    def pool(self, batch: Moments) -> Moments:
        """The moments of all ranks' values, `(C,)` or `(groups, C)`; a rank may hold none."""
        shift = torch.zeros_like(batch.mean[:1]) if self.shift is None else self.shift.to(batch.mean)
        n, squares, first, second = self._sum(payload(batch, shift)).unbind(0)
        safe = torch.where(n > 0, n, 1.0)
        mean = shift + first / safe
        m2 = (second - first.square() / safe).clamp_min(0)
        if self.shift is None or self._far(first / safe, m2 / safe):
            away = torch.where(batch.count > 0, batch.mean - mean, 0.0)
            m2 = self._sum(batch.m2 + batch.count * away.square())
        self.shift = torch.where(torch.isfinite(mean), mean, shift)[:1].detach()
        return Moments(n, mean, m2, squares, batch.reliability)

    def traced_pool(self, batch: Moments) -> Moments:
        """`pool` in operations that autograd and compilers follow; the shift is the mean of the ranks' means."""
        present = (batch.count > 0).to(batch.mean.dtype)
        local = torch.where(batch.count > 0, batch.mean, 0.0).detach()
        ranks, means = Sum.apply(torch.stack((present, local)), self.group).unbind(0)  # pyright: ignore
        shift = means / torch.where(ranks > 0, ranks, 1.0)
        n, squares, first, second = Sum.apply(payload(batch, shift), self.group).unbind(0)  # pyright: ignore
        safe = torch.where(n > 0, n, 1.0)
        return Moments(
            n, shift + first / safe, (second - first.square() / safe).clamp_min(0), squares, batch.reliability
        )

    def sums(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Vectors of one shape, each added up over ranks, in one message."""
        return tuple(self._sum(torch.stack(vectors)).unbind(0))

    def _far(self, distance: Tensor, var: Tensor) -> bool:
        """Whether the shift was too far off; read where reading costs no device a wait."""
        if distance.device.type != "cpu":
            return False
        return bool((distance.square() > _FAR * var).any() & torch.isfinite(distance).all())

    def _sum(self, values: Tensor) -> Tensor:
        flat = torch.cat((values.reshape(-1), values.new_tensor([1.0, self._tag, self._tag**2])))
        self._calls += 1
        try:
            work: Any = dist.all_reduce(flat, group=self.group, async_op=True)
            work.wait() if flat.device.type == "cuda" else work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            raise BatchNormError(self._blame(error)) from error
        if flat.device.type == "cpu":
            ranks, tags, squares = (float(value) for value in flat[-3:])
            if tags != ranks * self._tag or squares != ranks * self._tag**2:
                raise BatchNormError(
                    f"ranks must run their layers in one order; rank {dist.get_rank()} is at {self.where} and another "
                    "rank is at another layer"
                )
        return flat[:-3].reshape(values.shape)

    def _blame(self, error: Exception) -> str:
        """Which ranks did not come: each that waits in vain leaves a word in the store and reads the others'."""
        rank, world = dist.get_rank(), dist.get_world_size()
        start = f"every rank must reach {self.where} within {self.timeout:g} s; rank {rank} waited for its sum"
        try:
            store: Any = dist.distributed_c10d._get_default_store()
            key = f"batchnorm/{self.where}/{self._calls}/"
            store.set(key + str(rank), "waiting")
            time.sleep(min(2.0, self.timeout))
            members = range(world) if self.group is None else dist.get_process_group_ranks(self.group)
            gone = [str(other) for other in members if not store.check([key + str(other)])]
        except Exception:
            # The store lives in rank 0's process and may be gone with it.
            gone = []
        named = f"; rank {', '.join(gone)} did not come" if gone else ""
        return f"{start}{named} ({str(error).splitlines()[0][:120]})"


def payload(batch: Moments, shift: Tensor) -> Tensor:
    """Count, sum of squared weights, and the sums of deviations from the shift and of their squares."""
    present = batch.count > 0
    away = torch.where(present, batch.mean - shift, 0.0)
    squares = batch.count if batch.count_squared is None else batch.count_squared
    second = torch.where(present, batch.m2, 0.0) + batch.count * away.square()
    return torch.stack((batch.count, squares, batch.count * away, second))


def _nobody() -> None:
    return None


def _number(name: str) -> float:
    """A small number that tells layers apart, the same in every process."""
    total = 0
    for byte in name.encode():
        total = (total * 31 + byte) % 65_521
    return float(total + 1)
