"""Step 3 of batch normalization: when and how a layer's running statistics move, and what is pooled before they do."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm import kernels
from batchnorm.layers.activation import SMALLEST_WEIGHT
from batchnorm.layers.asserting import require, transformed
from batchnorm.layers.couplings import Coupling, Returned
from batchnorm.layers.estimators import Now, State
from batchnorm.layers.moments import Moments
from batchnorm.layers.naming import describe
from batchnorm.layers.ranks import Ranks, TracedRanks
from batchnorm.layers.recompute import bookkeeping
from batchnorm.layers.remembered import Buffers
from batchnorm.layers.statistics import PENDING, Statistics
from batchnorm.layers.streams import stream


class Moving(Statistics):
    """The statistics of a layer that move: by a batch, by a stream of groups, or by what `accumulate` pooled."""

    frozen: bool = False
    paused: bool = False
    accumulating: bool = False

    def _ranks(self) -> Ranks | TracedRanks | None:
        """The processes this layer shares statistics with, greeted once."""
        sync = self.recipe.extent.sync
        if sync is None or sync.size() == 1:
            return None
        if torch.compiler.is_compiling():
            return TracedRanks(_meet_while_compiling(self))
        return self._meet()

    def _meet(self) -> Ranks:
        sync: Any = self.recipe.extent.sync
        ranks = self.__dict__.get("_partners")
        if ranks is None or not ranks.current(sync):
            signature = {
                "layer": describe(self),
                "channels": self.num_features,
                "dtype": str(self.running_mean.dtype if self.running_mean is not None else self.weight.dtype),
                # A function's address is its process's own.
                "choices": re.sub(r" at 0x[0-9a-f]+", "", repr(self.recipe)),
                "momentum": re.sub(r" at 0x[0-9a-f]+", "", repr(self.momentum)),
                "eps": self.eps,
                "version": version("batchnorm"),
            }
            ranks = self.__dict__["_partners"] = Ranks(sync, signature)
        paused, bank = "paused" if self.paused else "", self.active_bank
        ranks.mode = paused if bank is None else f"{paused} bank {bank}".strip()
        return ranks

    def _puller(self, coupling: Coupling, now: Now) -> Any:
        # By the time backward runs, the bank, the pause or the functional call of this forward may be over.
        buffers, moves = Buffers(self, self.memory_names), not self.paused

        def pull(back: Returned) -> tuple[Tensor, Tensor]:
            held = buffers.now()
            few, share = None, back.plan.share
            if not coupling.takes_one_value and isinstance(share, torch.Tensor):
                # Groups with too few values met the running statistics: constants to the gradient, in no memory.
                few = share == 0
                back = back._replace(batch=replace(back.batch, count=torch.where(few, 0.0, back.batch.count)))
            u, v, new = coupling.pull(back, self._state(back.sum_g.dtype, held), now)
            if few is not None:
                u, v = (torch.where(few, 0.0, value) for value in (u, v))
            if moves:
                # An overflowing step of mixed precision must not stay in the controllers for ever. Of a stream, single
                # samples are left out, and `pull` has done that.
                finite = (torch.isfinite(back.sum_g) & torch.isfinite(back.sum_gx)).all(-1)
                finite = finite.any() if self.recipe.extent.sequential else finite.all()
                self._write_memory(new, finite & (back.batch.count > 0).any(), held)
            return u, v

        return pull

    @torch.no_grad()
    def _situation(self, pooled: Moments, before: dict[str, Tensor] | None, again: bool) -> tuple[State, Now]:
        """The statistics and the step this forward meets; a recomputed one meets those of its first."""
        forward = self.__dict__.get("_forward") if self.recipe.coupling.reads_population else None
        with bookkeeping():
            found = forward.situation() if again and forward is not None else None
            if found is not None:
                return found
            state, now = self._state(pooled.mean.dtype), self._now(pooled.mean.device, before)
            if forward is not None and not again:
                forward.met(state, now)
            return state, now

    @torch.no_grad()
    def _stream(
        self, batch: Moments, state: State, now: Now, enough: Tensor | None = None
    ) -> tuple[State, State, Tensor]:
        """Group after group: what each meets `(groups, C)`, what is left at the end, which groups counted."""
        gain = now.momentum
        if gain is None:
            # A cumulative average, as update_bn asks for: every group is a step of its own.
            groups = torch.arange(1, len(batch.mean) + 1, device=batch.mean.device)[:, None]
            gain = 1.0 / ((now.step - 1) * len(batch.mean) + groups).to(batch.mean.dtype)
        estimator: Any = self.recipe.estimator
        ok = self._acceptable(batch, State(batch.mean, batch.var(estimator.correction)), enough)
        met, final = stream(estimator, batch, state, gain, ok, now.eps)
        return met, final, ok

    def _acceptable(self, batch: Moments, new: State, several: Tensor | None = None) -> Tensor:
        """Whether a batch, or each group `(groups, 1)`, may enter: finite, not empty, enough of it for a variance.

        Without several values it has met the running statistics, which stay.
        """
        rows = batch.mean.dim() == 2

        def everywhere(condition: Tensor) -> Tensor:
            return condition.all(-1, keepdim=True) if rows else condition.all()

        present = everywhere(batch.count > 0 if several is None else (batch.count > 0) & several)
        if self.recipe.policy.nonfinite == "propagate":
            return present
        finite = everywhere(torch.isfinite(batch.mean) & torch.isfinite(batch.m2) & torch.isfinite(new.var))
        if self.recipe.policy.nonfinite == "raise":
            require((finite | ~present).all(), "batch statistics must be finite", self)
        return finite & present

    @torch.no_grad()
    def _move(
        self,
        batch: Moments,
        memory: dict[str, Tensor] | None,
        now: Now | None = None,
        several: Tensor | None = None,
    ) -> None:
        """Step 3: move the running statistics, unless the batch is not finite, or met them with one value alone."""
        with bookkeeping():
            if self.accumulating:
                self._pend(batch, several)
                return
            state = self._state(batch.mean.dtype)
            new = self.recipe.estimator.step(state, batch, self._now(batch.mean.device) if now is None else now)
            ok = self._acceptable(batch, new, several)
            if memory:
                new = replace(new, memory={**new.memory, **memory})
            self._commit(new, ok, ~ok)

    def _commit(self, new: State, ok: Tensor, skipped: Tensor) -> None:
        for name, value in (("running_mean", new.mean), ("running_var", new.var)):
            buffer = self.stat(name)
            buffer.copy_(torch.where(ok, value, buffer.to(value.dtype)))
        self._write_memory(new.memory, ok)
        tracked = self.stat("num_batches_tracked")
        if tracked is not None:
            tracked.add_(ok)
        self._count(skipped)

    def _count(self, skipped: Tensor) -> None:
        """Count a batch that was left out; the count is not a part of the model, so exports and transforms leave it."""
        count = self.num_batches_skipped
        if count is None or torch.compiler.is_exporting() or transformed():
            return
        # Outside a compiler, a functional or fake value cannot be added to what is no input of its graph.
        if torch.compiler.is_compiling() or (type(skipped) is Tensor and not torch._is_functional_tensor(skipped)):
            count.add_(skipped)

    def _pend(self, batch: Moments, several: Tensor | None = None) -> None:
        """Keep a micro-batch for the one update that `accumulate` makes."""
        held = self._pending()
        ok = self._acceptable(batch, State(batch.mean, batch.m2), several)
        new = held.merge(batch)
        for name, value in (("count", new.count), ("mean", new.mean), ("m2", new.m2)):
            buffer = getattr(self, f"pending_{name}")
            buffer.copy_(torch.where(ok, value, buffer))
        squares = new.count if new.count_squared is None else new.count_squared
        self.pending_count_squared.copy_(torch.where(ok, squares, self.pending_count_squared))  # pyright: ignore
        self._count(~ok)

    def _pending(self) -> Moments:
        count, mean, m2, squares = (getattr(self, f"pending_{n}") for n in ("count", "mean", "m2", "count_squared"))
        return Moments(
            count.clone(), mean.clone(), m2.clone(), squares.clone(), self.recipe.policy.weights == "reliability"
        )

    def start_accumulating(self) -> None:
        """Collect moments instead of moving; see `batchnorm.accumulate`."""
        device: Any = self.running_mean.device  # pyright: ignore[reportOptionalMemberAccess]
        with torch.inference_mode(False):
            for name in PENDING:
                self.__dict__[name] = torch.zeros(self.num_features, dtype=kernels.wide_dtype(device), device=device)
        self.accumulating = True

    @torch.no_grad()
    def stop_accumulating(self, land: bool) -> None:
        """Make the one update from what was collected, or none."""
        self.accumulating = False
        batch = self._pending()
        if land and bool((batch.count > 0).any()):
            state, now = self._state(batch.mean.dtype), self._now(batch.mean.device)
            self._move(batch, self.recipe.coupling.step(batch, state, now), now)
        for name in PENDING:
            del self.__dict__[name]


def require_invertible(weight: Tensor, layer: nn.Module) -> None:
    """The form that keeps its output divides by weight on its way back."""
    message = f"weight must be at least {SMALLEST_WEIGHT} in every channel with inplace=True, which divides by it"
    require((weight.detach().abs() >= SMALLEST_WEIGHT).all(), message, layer)


def _meet_while_compiling(layer: Moving) -> str:
    """Greet the other ranks; the name of the group to sum in."""
    return layer._meet().group_name


# As torch.compiler.assume_constant_result, without importing the compiler: it runs while a graph is traced.
_meet_while_compiling._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
