"""A call by a device's kernels once it is settled: its forward, its backward, and what became of the statistics."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.asserting import FINITE, REPEATED, SEVERAL, require
from batchnorm.layers.rule import Move, Pull, Rows
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
