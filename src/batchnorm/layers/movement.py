"""Step 3 of batch normalization: when and how a layer's running statistics move, and what is pooled before they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.layers import rule
from batchnorm.layers.asserting import FINITE, exporting, require, transformed
from batchnorm.layers.choices.situation import Held, Now, State
from batchnorm.layers.masks import MaskInput
from batchnorm.layers.moments import Moments
from batchnorm.layers.processes.ranks import Ranks, partners
from batchnorm.layers.processes.traced import TracedRanks
from batchnorm.layers.recompute import Forward, bookkeeping
from batchnorm.layers.statistics import Statistics


class Moving(Statistics):
    """The statistics of a layer that move: by a batch, by a stream of groups, or by what `accumulate` pooled."""

    frozen: bool = False
    paused: bool = False
    accumulating: bool = False
    # The mask of a context, and the forward that is being remembered. A compiler guards attributes that always exist.
    _given: MaskInput | None = None
    _forward: Forward | None = None

    def _ranks(self) -> Ranks | TracedRanks | None:
        """The processes this layer shares statistics with, registered once."""
        sync = self.recipe.extent.sync
        if sync is None or sync.size() == 1:
            return None
        if torch.compiler.is_compiling():
            return TracedRanks(_register_while_compiling(self))
        return partners(self, sync)

    @torch.no_grad()
    def _situation(self, device: torch.device, before: dict[str, Tensor] | None, again: bool) -> tuple[State, Now]:
        """The statistics and the step this forward meets; a recomputed one meets those of its first."""
        forward = self._forward if self.recipe.reads_population else None
        if forward is None:
            return self._state(kernels.wide_dtype(device)), self._now(device, before)
        with bookkeeping():
            found = forward.situation() if again else None
            if found is not None:
                return found
            state, now = self._state(kernels.wide_dtype(device)), self._now(device, before)
            if not again:
                forward.met(state, now)
            return state, now

    @torch.no_grad()
    def _stream(
        self, batch: Moments, state: State, now: Now, enough: Tensor | None = None
    ) -> tuple[State, State, Now, tuple[Tensor, Tensor]]:
        """Group after group: what each meets `(groups, C)`, what is left, their steps; which counted, were skipped."""
        # Every group is a step of its own, which a cumulative average goes by, as update_bn asks for.
        groups = torch.arange(1, len(batch.mean) + 1, device=batch.mean.device)[:, None]
        now = now.having(each=((now.step - 1) * len(batch.mean) + groups).to(batch.mean.dtype))
        how = self.recipe.estimator.move(state, now)
        ok, skipped = self._acceptable(batch, batch.var(how.correction), enough)
        met, last = rule.stream(batch, state.mean, state.var, now.eps, how, ok)
        return State(*met, state.memory), State(*last, state.memory), now, (ok.any(), skipped.any())

    def _acceptable(self, batch: Moments, var: Tensor, several: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whether a batch, or each group `(groups, 1)`, may enter with this new variance, or is skipped."""
        ok, skipped, sound = rule.may_enter(batch, var, self.recipe.policy.nonfinite, several)
        if sound is not None:
            require(sound, FINITE, self)
        return ok, skipped

    @torch.no_grad()
    def _move(self, batch: Moments, now: Now | None = None, several: Tensor | None = None) -> None:
        """Step 3: move the running statistics, unless the batch is not finite, or met them with one value alone."""
        with bookkeeping():
            if self.accumulating:
                self._pend(batch, several)
                return
            state, estimator = self._state(batch.mean.dtype), self.recipe.estimator
            now = (self._now(batch.mean.device) if now is None else now).having(moments=batch)
            mean, var = rule.move(batch, state.mean, state.var, now.eps, estimator.move(state, now))
            self._commit(State(mean, var, self._kept(state, now, batch)), *self._acceptable(batch, var, several))

    def _kept(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """What the choices keep of a batch that enters."""
        if not self.memory_names:
            return {}
        recipe = self.recipe
        return {**recipe.estimator.remember(state, now, batch), **recipe.coupling.remember(state, now, batch)}

    def _remember(self, state: State, now: Now, batch: Moments, entered: Any) -> None:
        """Keep a batch that has entered; a device's tensor says whether, and is not waited for."""
        # As torch.no_grad, at a third of its cost.
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            held = state._held if isinstance(state, Held) else None
            ok = entered if isinstance(entered, Tensor) else None
            self._write_memory(self._kept(state, now.having(moments=batch), batch), ok, held)
        finally:
            torch.set_grad_enabled(before)

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
        if count is None or exporting() or transformed():
            return
        # Outside a compiler, a functional or fake value cannot be added to what is no input of its graph.
        if torch.compiler.is_compiling() or (type(skipped) is Tensor and not torch._is_functional_tensor(skipped)):
            count.add_(skipped)

    def _pend(self, batch: Moments, several: Tensor | None = None) -> None:
        """Keep a micro-batch for the one update that `accumulate` makes."""
        held: Moments = self.__dict__["_pending"]
        ok, skipped = self._acceptable(batch, batch.m2, several)
        new = held.merge(batch)
        for name in ("count", "mean", "m2", "count_squared"):
            buffer = getattr(held, name)
            buffer.copy_(torch.where(ok, getattr(new, name), buffer))
        self._count(skipped)

    def start_accumulating(self) -> None:
        """Collect moments instead of moving; see `batchnorm.accumulate`."""
        device: Any = self.running_mean.device  # pyright: ignore[reportOptionalMemberAccess]
        with torch.inference_mode(False):
            zeros = torch.zeros(4, self.num_features, dtype=kernels.wide_dtype(device), device=device).unbind(0)
        reliability = self.recipe.policy.weights == "reliability"
        self.__dict__["_pending"] = Moments(zeros[0], zeros[1], zeros[2], zeros[3], reliability)
        self.accumulating = True

    @torch.no_grad()
    def stop_accumulating(self, land: bool) -> None:
        """Make the one update from what was collected, or none."""
        self.accumulating = False
        batch = self.__dict__.pop("_pending")
        if land and bool((batch.count > 0).any()):
            self._move(batch)


def _register_while_compiling(layer: Moving) -> str:
    """Register with the other ranks; the name of the group to sum in."""
    return partners(layer, layer.recipe.extent.sync).group_name


# As torch.compiler.assume_constant_result, without importing the compiler: it runs while a graph is traced.
_register_while_compiling._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
