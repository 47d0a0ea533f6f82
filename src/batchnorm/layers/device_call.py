"""A call by a device's kernels once it is settled: its forward, its backward, and what became of the statistics."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, triton
from batchnorm.layers import rule
from batchnorm.layers.asserting import require
from batchnorm.layers.moments import Moments
from batchnorm.layers.operands import require_unchanged
from batchnorm.layers.passing import Plan, Sharing
from batchnorm.layers.rule import Move, Numbers, Pull, Rows, Vectors
from batchnorm.layers.step import in_two_calls

# What groups that a mask leaves with one value come to, as the kernels count them.
OTHERS, POPULATION, REFUSED = 0, 1, 2
_NOT_FINITE = "batch statistics must be finite"
_ONE_VALUE = "training needs at least 2 unmasked values per channel, over all ranks"
_REPEATS = (
    "weights that count repetitions must sum to more than 1 per channel; "
    "Policy(weights='reliability') accepts any scale"
)

_ARRIVED: WeakKeyDictionary[Any, dict[torch.device, Tensor]] = WeakKeyDictionary()


class Call:
    """A forward in one launch or three, or in the two that follow the moments given; likewise backward."""

    is_native, inplace, learned = True, False, ()

    def __init__(
        self, layer: Any, last: bool, sharing: Sharing, numbers: Numbers, vectors: Vectors, plan: Plan
    ) -> None:
        self.layer, self.last, self.sharing, self.plan = layer, last, sharing, plan
        self.numbers, self.vectors = numbers, vectors
        self.activation: str | None = None
        self.slope, self.stored, self.moves, self.few = 0.0, False, False, OTHERS
        self.statistics: calls.Statistics | None = None
        self.saved: calls.Saved | None = None
        self.outcome: Tensor | None = None
        self.memory: Any = None

    def prepare(self, move: Move, device: torch.device, frequency: bool = False) -> None:
        """Everything in the kernels' terms."""
        k, policy = move, self.layer.recipe.policy
        self.slope = self.slope if self.activation == "leaky_relu" else 0.0
        self.vectors_told = calls.Vectors(*self.vectors, k.from_mean, k.from_var)
        self.spec = triton.calls().spec(
            *self.numbers, *k[:6], self.layer.eps, self.sharing.centres, self.stored,
            calls.ACTIVATIONS.index(self.activation), self.slope, self.sharing.reliability,
            calls.NONFINITE.index(policy.nonfinite), device=device, few=self.few,
            frequency=frequency,
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

    def begin(self, *told: Any) -> Any:
        """As `Passing.begin`, around the sum over ranks."""
        return in_two_calls(self, triton.calls().backward, *told)

    def constant(self) -> Pull | None:
        """What takes the derivative's place where the statistics are constants."""
        return Pull() if self.plan.detached else None

    def backward(self, g: Tensor, x: Any, weight: Any, bias: Any, y: Any, needs: tuple[bool, ...], learned: Any) -> Any:
        """Three launches, or four around what needs the sums; in torch where something watches."""
        given, memory, ranks = self.constant(), self.memory, self.sharing.ranks
        told = self._told(g, x, weight, bias, y, needs) if ranks is None else None
        at: Any = None
        if told is not None and memory is not None:
            at = memory.open()
            given = memory.pull(at, self.numbers, None)
        if told is None or (memory is not None and given is None):
            sums, end = self.begin(g, x, weight, bias, y, needs, learned)
            return end(*(sums if ranks is None else ranks.sums(*sums)))
        dx, dw, db, dr, sums = triton.calls().backward(*told, pull=given)
        if memory is not None:
            memory.learn(at, self.numbers, self._brought(weight, sums), given)
        return dx, dw, db, (g if dr is None else dr) if needs[3] else None, None

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

    def batch(self) -> Moments:
        """The moments of each group."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        squares = None if self.sharing.weight is None and self.sharing.ranks is None else row(1)
        return Moments(row(0), row(2), row(3), squares, self.sharing.reliability)

    def rows(self) -> Rows:
        """What normalised, as the rule has it."""
        row: Any = self.saved.row  # pyright: ignore[reportOptionalMemberAccess]
        n, numbers = rule.or_one(row(0)), self.numbers
        own_u, own_v = (0.0, 0.0) if self.plan.detached else (numbers.mean, row(7) * n)
        few = self.batch().few if self.few == POPULATION else None
        return Rows(n, row(4), row(5), row(6), own_u, own_v, row(8), row(12), row(9), few)

    def _brought(self, weight: Any, sums: Any) -> rule.Sums:
        """All that the memory asks of the data."""
        return rule.told(self.rows(), self.batch(), weight, *sums)
