"""A layer beside its truth: how both are built, given data and compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import batchnorm
from tests.state_machine.truth import Forward, Stats, Truth

CHANNELS = 3
# Class, sizes of the positions, further arguments.
KINDS: dict[str, tuple[type, tuple[int, ...], dict[str, Any]]] = {
    "(N, C)": (batchnorm.BatchNorm1d, (), {}),
    "(N, C, L)": (batchnorm.BatchNorm1d, (4,), {}),
    "(N, C, H, W)": (batchnorm.BatchNorm2d, (2, 3), {}),
    "(N, C, D, H, W)": (batchnorm.BatchNorm3d, (1, 2, 2), {}),
    "(N, H, W, C)": (batchnorm.BatchNorm, (2, 2), {"channel_axis": -1}),
}
# Windows and warm-ups that are over before a sequence is.
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost": {"extent": batchnorm.layers.Ghost(2)},
    "window": {"estimator": batchnorm.layers.Window(2)},
    "power": {"coupling": batchnorm.layers.PowerNorm(warmup=1)},
    "mabn": {"coupling": batchnorm.layers.MABN(window=3, warmup=1, correct_after=2)},
}
# Of outputs and statistics, and of gradients, which divide by a standard deviation that may be small.
TOLERANCE = {torch.float64: (1e-9, 1e-8), torch.float32: (2e-4, 5e-3)}


@dataclass
class Pending:
    """A forward whose backward is to come."""

    x: torch.Tensor
    y: torch.Tensor
    parameters: list[torch.Tensor]
    done: Forward


@dataclass
class Context:
    """A `with` block that is open, and what its end does to the truth."""

    name: str
    stack: ExitStack
    leave: Callable[[bool], None]


@dataclass
class Pair:
    """A layer and what must be true of it."""

    layer: Any
    truth: Truth
    kind: str
    dtype: torch.dtype
    # Whether float32 has been anywhere, so that its rounding is allowed.
    loose: bool
    contexts: list[Context] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    saved: tuple[dict[str, torch.Tensor], Truth] | None = None
    # The training flag outside every `mode` block, inside one.
    outer_training: bool | None = None

    def twin(self, layer: Any) -> Pair:
        """A copy of the layer, outside every context, with a truth of its own."""
        truth = self.truth.copy()
        if self.outer_training is not None:
            truth.training = self.outer_training
        return Pair(layer, truth, self.kind, self.dtype, self.loose)

    # Contexts ---------------------------------------------------------------------------------------------

    def enter(self, name: str, context: Any, leave: Callable[[bool], None]) -> None:
        """Open a `with` block."""
        stack = ExitStack()
        stack.enter_context(context)
        self.contexts.append(Context(name, stack, leave))

    def end(self, well: bool) -> None:
        """Leave the innermost block, or throw through it."""
        context = self.contexts.pop()
        if well:
            context.stack.close()
        else:
            error = KeyError("from the block")
            with suppress(KeyError):
                assert not context.stack.__exit__(KeyError, error, None)
        context.leave(well)

    def end_all(self) -> None:
        """Leave every block."""
        while self.contexts:
            self.end(True)

    # Data and comparison ------------------------------------------------------------------------------------

    def batch(self, seed: int, bad: str = "", size: int | None = None) -> torch.Tensor:
        """An input whose mean, spread, size and layout follow the seed; one value may be bad."""
        random = np.random.default_rng(seed)
        size = int(random.integers(2, 6)) if size is None else size
        size = size if self.truth.mask is None else len(self.truth.mask)
        shape = (size, CHANNELS, *KINDS[self.kind][1])
        values = random.normal(random.normal(0, 2), random.uniform(0.5, 3), shape)
        if bad:
            values[tuple(random.integers(0, length) for length in shape)] = float(bad)
        x = torch.from_numpy(values).to(self.dtype)
        if seed % 4 == 1:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        elif seed % 4 == 2:
            x = x.repeat_interleave(2, 0)[::2]
        elif seed % 4 == 3:
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        return x.movedim(1, -1) if self.kind == "(N, H, W, C)" else x

    def plain(self, x: torch.Tensor) -> Any:
        """`(N, C, P)` in float64."""
        x = x.detach().movedim(-1, 1) if self.kind == "(N, H, W, C)" else x.detach()
        return _numbers(x).reshape(x.shape[0], x.shape[1], int(np.prod(KINDS[self.kind][1])))

    def gradient(self, like: torch.Tensor, seed: int) -> torch.Tensor:
        """What comes back to an output."""
        return torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(like.shape))).to(like.dtype)

    def agree(self, got: torch.Tensor, expected: Any, what: str, of_gradients: bool = False) -> None:
        """A tensor of data or of channels is what it must be."""
        found = self.plain(got) if got.dim() > 1 else _numbers(got)
        tolerance = TOLERANCE[torch.float32 if self.loose else torch.float64][of_gradients]
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
        close = np.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
        assert close, f"{what} of {self.truth.method} {self.kind}:\n{found}\nis not\n{expected}"

    # Steps --------------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, call: Callable[[Any], Any] | None = None) -> Pending:
        """One forward of layer and truth; the outputs agree."""
        bank = self.truth.bank
        y = self.layer(x) if call is None else call(x)
        done = self.truth.forward(self.plain(x))
        self.agree(y, done.y, "output")
        own = bank is not None and self.truth.banks[bank].weight is not None
        prefix = f"bank_{bank}_" if own else ""
        return Pending(x, y, [getattr(self.layer, prefix + name) for name in ("weight", "bias")], done)

    def backward(self, p: Pending, seed: int) -> None:
        """One backward of layer and truth; the gradients agree."""
        g = self.gradient(p.y, seed)
        found = torch.autograd.grad(p.y, [p.x, *p.parameters], g)
        expected = self.truth.backward(p.done, self.plain(g))
        for got, true, what in zip(found, expected, ("gradient", "weight's gradient", "bias's gradient"), strict=True):
            self.agree(got, true, what, of_gradients=True)

    def check(self) -> None:
        """The statistics, switches, counts and names of the layer are those of the truth."""
        layer, truth = self.layer, self.truth
        assert (layer.training, layer.frozen) == (truth.training, truth.frozen)
        self._check_statistics(truth.own, "")
        for name, stats in truth.banks.items():
            self._check_statistics(stats, f"bank_{name}_")
        assert int(layer.num_batches_skipped) == truth.skipped, "num_batches_skipped"
        assert set(layer.state_dict()) == self.names(parameters=True)

    def names(self, parameters: bool) -> set[str]:
        """The entries a state_dict has, without or with parameters."""
        own = {"running_mean", "running_var", "num_batches_tracked", *self.layer.memory_names}
        names = own | ({"weight", "bias"} if parameters else set())
        for bank, stats in self.truth.banks.items():
            names |= {f"bank_{bank}_{name}" for name in own}
            if parameters and stats.weight is not None:
                names |= {f"bank_{bank}_weight", f"bank_{bank}_bias"}
        return names

    def _check_statistics(self, stats: Stats, prefix: str) -> None:
        for name, expected in (("running_mean", stats.mean), ("running_var", stats.var)):
            self.agree(getattr(self.layer, prefix + name), expected, prefix + name)
        assert int(getattr(self.layer, prefix + "num_batches_tracked")) == stats.steps, prefix + "num_batches_tracked"
        if "v" in stats.memory:
            self.agree(getattr(self.layer, prefix + "backward_v")[0], stats.memory["v"], prefix + "backward_v", True)
        if "count" in stats.memory:
            assert float(getattr(self.layer, prefix + "pooled_count")) == stats.memory["count"], prefix + "pooled_count"


def build(method: str, kind: str, dtype: torch.dtype, lazy: bool = False) -> Any:
    """A fresh layer; a lazy one has seen its first input in eval mode."""
    cls, positions, extra = KINDS[kind]
    options = {"method": method, "dtype": dtype, **extra, **OPTIONS.get(method, {})}
    if lazy and cls is not batchnorm.BatchNorm:
        layer = getattr(batchnorm, f"Lazy{cls.__name__}")(**options).eval()
        layer(torch.zeros(2, CHANNELS, *positions, dtype=dtype))
        return layer.train()
    return cls(CHANNELS, **options)


def _numbers(x: torch.Tensor) -> Any:
    # A copy: an array that shares memory would make the tensor impossible to resize.
    return x.detach().to(torch.float64, copy=True).numpy()
