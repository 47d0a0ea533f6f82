"""A call by a device's kernels once it is settled: its forward, its backward, and what became of the statistics."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.asserting import require
from batchnorm.layers.operands import require_unchanged
from batchnorm.layers.rule import Move, Pull, Rows
from batchnorm.layers.step import Native

# What groups that a mask leaves with one value come to, as the kernels count them.
OTHERS, POPULATION, REFUSED = 0, 1, 2
_NOT_FINITE = "batch statistics must be finite"
_ONE_VALUE = "training needs at least 2 unmasked values per channel, over all ranks"
_REPEATS = (
    "weights that count repetitions must sum to more than 1 per channel; "
    "Policy(weights='reliability') accepts any scale"
)

_ARRIVED: WeakKeyDictionary[Any, dict[torch.device, Tensor]] = WeakKeyDictionary()


class Call(Native):
    """A forward in one launch or three, or in the two that follow the moments given; likewise backward."""

    few = OTHERS
    outcome: Tensor | None = None

    @property
    def kernel(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The backward, whole or in two calls."""
        return triton.calls().backward

    def prepare(self, move: Move, r: Any, x: Tensor) -> None:
        """Everything in the kernels' terms."""
        judged = self.sharing.weight is not None and not self.stored and self.given_plan is None
        if judged and not r.coupling.takes_one_value:
            self.few = POPULATION if r.tracks and r.recipe.policy.too_few == "population" else REFUSED
        self.slope = self.slope if self.activation == "leaky_relu" else 0.0
        self.vectors_told = calls.Vectors(*self.vectors, move.from_mean, move.from_var)
        self.spec = triton.calls().spec(
            *self.numbers, *move[:6], self.layer.eps, self.sharing.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), self.slope, self.sharing.reliability,
            calls.NONFINITE.index(r.recipe.policy.nonfinite), device=x.device, few=self.few,
            frequency=judged and not r.reliability,
        )  # fmt: skip

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """The output; `saved` has the channel vectors then, `outcome` what became of the statistics."""
        y, self.saved, self.outcome = triton.calls().forward(
            self.spec, x, self.last, self.sharing.groups, weight, bias, residual, self.sharing.weight,
            self.vectors_told, self.statistics, self.moves, self.saved, self._arrived,
        )  # fmt: skip
        return y

    def _arrived(self, device: torch.device) -> Tensor:
        """The layer's count of programs, of one launch at a time; it lives as long as the layer, as in a graph."""
        found = _ARRIVED.setdefault(self.layer, {})
        if device not in found:
            found[device] = torch.zeros((), dtype=torch.int32, device=device)
        return found[device]

    @property
    def status(self) -> Tensor | None:
        """As `settle`, where the native call has a number."""
        return self.settle()

    def settle(self) -> Tensor | None:
        """Whether the batch entered the statistics; what is not legal is raised, by a device when it gets there."""
        if self.outcome is None:
            return None
        layer = self.layer
        if self.moves and self.spec.nonfinite == calls.NONFINITE.index("raise"):
            require(self.outcome[1], _NOT_FINITE, layer)
        if self.few == REFUSED:
            require(self.outcome[2], _ONE_VALUE, layer)
        if self.spec.frequency:
            require(self.outcome[3], _REPEATS, layer)
        return self.outcome[0] != 0

    def _brought(self, told: Any, weight: Any, given: Pull | None) -> tuple[Any, rule.Sums]:
        """The gradients, and all that the memory asks of the data."""
        *found, table = self.kernel(*told, pull=given)
        return found, rule.told(self.rows(), self.batch(), weight, table)

    def _told(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...]) -> Any:
        """What a backward is told, or None where the kernels cannot read all of it.

        Raises:
            OperandError: a tensor of another size than in the forward.
        """
        channels = torch.Size((self.saved.channels,))  # pyright: ignore[reportOptionalMemberAccess]
        for name, t in (("weight", weight), ("bias", bias)):
            if t is not None and t.shape != channels:
                require_unchanged(self.layer, name, t, channels)
        if not (native.unwatched() and native.dense(g) and native.dense(x) and native.laid_out(x, self.last)):
            return None
        require_unchanged(self.layer, "input", x, g.shape)
        wants = needs[0], weight is not None and needs[1], bias is not None and needs[2]
        g = native.like(g, x)
        return self.spec, g, x, y, self.last, weight, bias, self.sharing.weight, self.saved, wants

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        few = self.batch().few if self.few == POPULATION else None
        return super().rows()._replace(few=few)
