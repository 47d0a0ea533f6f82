"""A call on a CUDA device by Triton's kernels: one launch or three each way, and nothing is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.asserting import FINITE, REPEATED, SEVERAL, require
from batchnorm.layers.operands import mixed
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import Move, Numbers, Pull, Rows, Vectors
from batchnorm.layers.step import Native

# What groups that a mask leaves with one value come to, as the kernels count them.
OTHERS, POPULATION, REFUSED = 0, 1, 2
_ARRIVED: WeakKeyDictionary[Any, dict[torch.device, Tensor]] = WeakKeyDictionary()


class Call(Native):
    """A forward in one launch or three, or in the two that follow the moments given; likewise backward."""

    few = OTHERS
    outcome: Tensor | None = None
    reads = staticmethod(native.dense)
    affine = staticmethod(lambda weight, bias, x: True)

    def kernel(self, *told: Any, **more: Any) -> Any:
        """The backward, whole or in two calls; whether the sign comes from y, it sees."""
        *rest, _, wants = told
        return triton.calls().backward(*rest, wants, **more)

    def prepare(self, move: Move, r: Any, x: Tensor) -> None:
        """Everything in the kernels' terms."""
        judged = self.sharing.weight is not None and not self.stored and self.given_plan is None
        if judged and not r.coupling.takes_one_value:
            self.few = POPULATION if r.tracks and r.recipe.policy.too_few == "population" else REFUSED
        self.handed_in = calls.Vectors(*self.vectors, move.from_mean, move.from_var)
        terms, frequency = self._terms(move, r), judged and not r.reliability
        self.spec = triton.calls().spec(*terms, device=x.device, few=self.few, frequency=frequency)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output; `saved` has the channel vectors then, `outcome` what became of the statistics."""
        y, self.saved, self.outcome = triton.calls().forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, self.sharing.weight,
            self.handed_in, self.statistics, self.moves, self.saved, self._arrived,
        )  # fmt: skip
        return y

    def _arrived(self, device: torch.device) -> Tensor:
        """The layer's count of programs, of one launch at a time; it lives as long as the layer, as in a graph."""
        found = _ARRIVED.setdefault(self.layer, {})
        if device not in found:
            found[device] = torch.zeros((), dtype=torch.int32, device=device)
        return found[device]

    def several(self) -> Tensor | None:
        """Whether any group has more than one value, where a mask decides it."""
        return None if self.few == OTHERS else self.batch().has_several()

    def entered(self) -> Any:
        """Whether the batch entered the statistics; what is not legal is raised, by a device when it gets there."""
        if self.outcome is None:
            return True
        layer = self.layer
        if self.moves and self.spec.nonfinite == calls.NONFINITE.index("raise"):
            require(self.outcome[1], FINITE, layer)
        if self.few == REFUSED:
            require(self.outcome[2], SEVERAL, layer)
        if self.spec.frequency:
            require(self.outcome[3], REPEATED, layer)
        return self.outcome[0] != 0

    def _brought(self, told: Any, weight: Any, given: Pull | None) -> tuple[Any, rule.Sums]:
        """The gradients, and all that the memory asks of the data."""
        *found, table = self.kernel(*told, pull=given)
        return found, rule.told(self.rows(), self.batch(), weight, table)

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        few = self.batch().few if self.few == POPULATION else None
        return super().rows()._replace(few=few)


class Kernels(NamedTuple):
    """What a device's kernels have of their own: what they decline, read and take, and the call once it is settled."""

    declined: Callable[..., str | None]
    serves: Callable[[Tensor], bool]
    readable: Callable[..., bool]
    takes: Callable[[Numbers, Vectors, Any], bool]
    call: Callable[..., Any]


def _declined(layer: Any, r: Any, x: Tensor, sample_weight: Tensor | None, groups: int, fuses: bool) -> str | None:
    """Why the kernels do not serve a call of a layer that `backends.Ready` has settled, or None."""
    why = triton.declined(x)
    if why is not None:
        return why
    if layer.inplace and layer.training and not r.stored:
        return "the in-place form starts its backward from the output"
    if r.sync is not None and r.sync.size() > 1:
        return "the statistics are shared over processes"
    if r.coupling.is_plain and groups == 1 and sample_weight is None and not fuses:
        return "torch's kernel is as fast for plain batch norm and nothing to fuse"
    meets = r.tracks and r.recipe.policy.too_few == "population" and not r.coupling.takes_one_value
    if meets and sample_weight is not None and recomputing():
        return "the statistics that groups of one value met have moved since"
    return None


def _takes(numbers: Numbers, vectors: Vectors, move: Move) -> bool:
    """Whether each is one value, a number or a tensor, and nothing is learned."""
    every = [v for v in (*numbers, *move[:4]) if isinstance(v, Tensor)]
    learned = any(v.requires_grad for v in (*every, *(v for v in vectors if v is not None)))
    return not learned and all(v.numel() == 1 for v in every)


def _readable(x: Tensor, weight: Any, bias: Any, sample_weight: Tensor | None, statistics: Any) -> bool:
    """As `backends.readable`: vectors of one value a channel, and a mask or weights, lie in order beside x."""

    def lies(v: Any) -> bool:
        return native.dense(v) and v.device == x.device and v.numel() == x.shape[1] and v.is_contiguous()

    if not all(v is None or (lies(v) and not mixed(v, x)) for v in (weight, bias)):
        return False
    if statistics is not None:
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        if not all(lies(v) and v.dtype is dtype and not v.requires_grad for v in statistics[:2]):
            return False
        if any(v is not None and (v.device != x.device or v.dtype is not torch.int64) for v in statistics[2:]):
            return False
    return sample_weight is None or (type(sample_weight) is Tensor and sample_weight.device == x.device)


KERNELS = Kernels(_declined, lambda x: triton.declined(x) is None, _readable, _takes, Call)
