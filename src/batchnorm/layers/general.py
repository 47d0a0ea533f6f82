"""The ways of a layer that are not one native call: torch's kernels, and the passes around the rule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.kernels import calls, native, triton
from batchnorm.kernels.shapes import beside
from batchnorm.layers import device, rule
from batchnorm.layers.asserting import REPEATED, SEVERAL, require, tracing, transformed
from batchnorm.layers.backends import fewest, in_numbers, readable, ready_of, statistics_of
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.cross_iteration import look_back
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.movement import Moving
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import require_invertible
from batchnorm.layers.passing import Plan, Sharing, batch_moments, needs_spelling, spelled
from batchnorm.layers.recompute import bookkeeping, recomputing
from batchnorm.layers.step import Native, pass_through, run


class Normalising(Moving):
    """Step 2 of batch normalization where no native call makes all of it."""

    inplace: bool = False
    negative_slope: float = 0.01

    def _normalised(self, x: Tensor, weight: Tensor | None) -> Tensor:
        self._widen()
        return self.recipe.coupling.finish(self._made(x, weight), weight)

    def _made(self, x: Tensor, weight: Tensor | None) -> Tensor:
        recipe = self.recipe
        if (self.frozen or not self.training) and self.running_mean is not None:
            if recipe.inference.mixes and x.numel():
                return self._spell_or_pass(x, *self._mixing(x, weight, recipe.inference))[0]
            return self._with_stored(x, weight)
        # A paused layer keeps its coupling and moves nothing; one that does not track uses the batch.
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        ranks = self._ranks() if self.training else None
        if x.numel() == 0 and ranks is None:
            # torch's function keeps the graph for an empty batch; nothing may move, not even the counter.
            return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        coupling = recipe.coupling if tracks else recipe.coupling.untracked()
        groups = recipe.extent.groups(x.shape[0])
        # With a mask or weights, what they leave decides.
        alone = fewest(x.shape, groups) == 1 and (ranks is None or groups > 1)
        if alone and weight is None and not coupling.takes_one_value:
            if tracks and recipe.policy.too_few == "population":
                return self._with_stored(x, weight)
            raise BatchNormError(
                f"Expected more than 1 value per channel when training, got input size {x.size()} in "
                f"{describe(self)}; use a larger batch, drop the last one, or Policy(too_few='population')"
            )
        if coupling.is_plain and groups == 1 and weight is None and ranks is None:
            return self._plain(x, tracks)
        uneven = weight is not None or ranks is not None
        sharing = Sharing(groups, weight, recipe.policy.weights == "reliability", coupling.centres, ranks, uneven)
        return self._coupled(x, sharing, coupling, tracks)

    def _with_stored(self, x: Tensor, sample_weight: Tensor | None) -> Tensor:
        mean, var = self.stat("running_mean"), self.stat("running_var")
        if self._forward is not None:
            # It met those of its first run, which one value did not move, but other batches may have.
            met = self._situation(x.device, None, recomputing())[0]
            mean, var = met.mean.to(mean.dtype), met.var.to(var.dtype)
        if torch.is_grad_enabled() and not (torch.compiler.is_compiling() or tracing()):
            # Backward holds its own copies: the buffers may move before it runs. (A trace must not go by gradients.)
            mean, var = mean.clone(), var.clone()
        weight, bias = (beside(self.affine_part(name), mean) for name in ("weight", "bias"))
        if sample_weight is None:
            return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        selected = sample_weight != 0
        y = functional.batch_norm(torch.where(selected, x, 0), mean, var, weight, bias, False, 0.0, self.eps)
        return torch.where(selected, y, 0)

    def _mixing(self, x: Tensor, sample_weight: Tensor | None, inference: Any) -> tuple[Sharing, Plan]:
        """Who shares statistics at inference, and how they mix with the stored ones."""
        centres, uneven = self.recipe.coupling.centres, sample_weight is not None
        sharing = Sharing(inference.groups(len(x)), sample_weight, False, centres, uneven=uneven)
        state, positions = self._state(kernels.wide_dtype(x.device)), math.prod(x.shape[2:])
        return sharing, Plan(lambda here: inference.plan(here, state, positions, centres), self.eps, uneven=uneven)

    def _plain(self, x: Tensor, tracks: bool) -> Tensor:
        """The batch normalises: torch's fused kernel."""
        weight, bias = self.affine_part("weight"), self.affine_part("bias")
        y, mean, var = kernels.batch_norm_train(x, weight, bias, self.eps, kernels.compute_dtype(x))
        if tracks and not self.paused and not recomputing():
            with bookkeeping():
                n = torch.full_like(mean, x.numel() // x.shape[1])
                self._move(Moments(n, mean.detach(), var.detach() * (n - 1)))
        return y

    def _goes_in_place(self, x: Tensor, weight: Tensor | None) -> bool:
        """Whether the form that keeps its output serves this call; every other way activates afterwards."""
        plain = self.inplace and self.training and not self.frozen and weight is None
        several = fewest(x.shape, 1) > 1
        coupled = self.recipe.coupling.is_plain and not self.recipe.extent.splits
        return plain and several and coupled and self._ranks() is None and not needs_spelling(x)

    def _in_place(self, x: Tensor) -> Tensor:
        self._widen()
        weight, bias = self.affine_part("weight"), self.affine_part("bias")
        if weight is not None:
            require_invertible(weight, self)
        batch = batch_moments(x, Sharing())
        plan = Plan(lambda _: (rule.Numbers(), rule.Vectors()), self.eps)
        y = pass_through(x, weight, bias, plan, batch, Sharing(), slope=self.negative_slope)
        tracks = self.track_running_stats and self.running_mean is not None
        if tracks and not self.paused and not recomputing():
            self._move(batch.pool())
        return y

    def _coupled(
        self,
        x: Tensor,
        sharing: Sharing,
        coupling: Coupling,
        tracks: bool,
        batch: Moments | None = None,
        run: Any = run,
    ) -> Tensor:
        """Any coupling over any extent: moments, plan, the passes, and the step of the statistics."""
        recipe, again = self.recipe, recomputing()
        moves = tracks and not self.paused and not again
        before = self._look_back(x, again) if coupling.looks_back else None
        ranks = sharing.ranks
        if ranks is not None and recipe.extent.splits:
            # Ghost groups normalise inside their rank; what they pool to is everybody's.
            sharing = sharing._replace(ranks=None)
        batch = batch_moments(x, sharing) if batch is None else batch
        pooled = batch.pool()
        if ranks is not None and sharing.ranks is None:
            pooled = ranks.pool(pooled)
        met, now = self._situation(x.device, before, again) if tracks else (State(pooled.mean, pooled.mean), _NO_TIME)
        state, final, became = met, None, None
        checks_counts = sharing.uneven and not coupling.takes_one_value
        if tracks and recipe.extent.sequential:
            met, final, now, became = self._stream(batch, state, now, ~batch.few if checks_counts else None)
        for_few = None
        if sharing.uneven and self._has_few(batch, tracks, coupling):
            for_few = met.mean, met.var

        def told(found: Moments) -> tuple[State, Now]:
            # What a choice makes of the moments is a constant to the gradient, in every form of the forward.
            return met, now.having(moments=replace(found, mean=found.mean.detach(), m2=found.m2.detach()))

        own = None if coupling.statistics is None else lambda found: coupling.statistics(found, *told(found))
        plan = Plan(
            lambda found: coupling.plan(*told(found)), self.eps, coupling.detached, sharing.uneven, for_few, own
        )
        move = None
        if moves and final is None and not self.accumulating and ranks is sharing.ranks:
            with torch.no_grad():
                move = recipe.estimator.move(state, now.having(moments=pooled))
                _ = state.mean, state.var  # as they are before they move
        memory = None if coupling.exact else Memory(self, now)
        y, moved = self._spell_or_pass(x, sharing, plan, memory, batch, move, run)
        with bookkeeping():
            if moved is not None:
                if moved is not False and self.memory_names:
                    self._remember(state, now, pooled, moved)
            elif moves and final is None:
                # Where all groups met the running statistics, those stay; ranks decide by what they have together.
                several = (pooled if ranks is not None else batch).has_several() if checks_counts else None
                self._move(pooled, now, several)
            elif moves and final is not None and became is not None:
                self._commit(final, *became)
        return y

    def _spell_or_pass(
        self,
        x: Tensor,
        sharing: Sharing,
        plan: Plan,
        memory: Memory | None = None,
        batch: Moments | None = None,
        move: rule.Move | None = None,
        run: Any = run,
    ) -> tuple[Tensor, Any]:
        """The output, and whether the batch entered the statistics where the move came with it."""
        weight, bias = self.affine_part("weight"), self.affine_part("bias")
        if memory is None and needs_spelling(x):
            return spelled(x, weight, bias, plan, sharing), None
        if memory is not None and not torch.compiler.is_compiling() and transformed():
            raise BatchNormError(
                f"coupling {type(self.recipe.coupling).__name__} cannot be transformed by torch.func in training: its "
                "backward uses running averages and is not a derivative; use eval mode, or autograd"
            )
        if tracing():
            raise BatchNormError(
                f"{describe(self)} must be traced in eval mode: the backward of {type(self.recipe.coupling).__name__} "
                "uses running averages, which a trace cannot hold"
            )
        found = batch_moments(x, sharing) if batch is None else batch
        call = None
        if not torch.compiler.is_compiling():
            call = self._after_moments(x, sharing, plan, found, memory, move)
        if call is None:
            return pass_through(x, weight, bias, plan, found, sharing, memory, run=run), None
        y = run(native.arranged(x)[0], weight, bias, None, call)
        return y, call.entered() if call.moves else None

    def _after_moments(
        self, x: Tensor, sharing: Sharing, plan: Plan, batch: Moments, memory: Any, move: rule.Move | None
    ) -> Native | None:
        """The call that follows the moments, or None where the passes must serve.

        With a move the running statistics move in it.
        """
        on = None if x.is_cpu and not triton.SWITCHES["interpreted"] else device.KERNELS
        weight, bias = self.affine_part("weight"), self.affine_part("bias")
        if plan.for_few is not None or plan.statistics_of is not None or not x.shape[1]:
            return None
        if not (native.serves(x, True) if on is None else on.serves(x)):
            return None
        # With gradients, where they are learned; such are not taken.
        numbers, vectors = plan.numbers_of(batch)
        statistics = None if move is None else statistics_of(self)
        if not (in_numbers if on is None else on.takes)(numbers, vectors, move or rule.Move()):
            return None
        if not (readable if on is None else on.readable)(x, weight, bias, sharing.weight, statistics):
            return None
        call = (Native if on is None else on.call)(self, native.arranged(x)[1], sharing, numbers, vectors)
        call.detached, call.given_plan, call.memory = plan.detached, plan, memory
        call.statistics, call.moves = statistics, move is not None
        room = x.new_empty(calls.size(sharing.groups, x.shape[1]), dtype=torch.float64)
        call.saved = calls.Saved(sharing.groups, x.shape[1], room)
        with torch.no_grad():
            call.saved.take(batch.count, batch._squares(), batch.mean, batch.m2)
        call.prepare(move or rule.Move(), ready_of(self), x)
        return call

    def _look_back(self, x: Tensor, again: bool) -> dict[str, Tensor]:
        if self.before is None:
            raise BatchNormError(
                f"{describe(self)} must know the convolution before it: use batchnorm.convert(model, 'cbn') on the "
                "whole model, or layer.attach(conv)"
            )
        if self._ranks() is not None:
            raise BatchNormError(f"{describe(self)} must run in one process, whose gradients cross-iteration uses")
        if torch.compiler.is_compiling() or tracing():
            tool = "torch.jit.trace" if tracing() else "torch.compile"
            raise BatchNormError(f"cross-iteration takes a derivative inside its forward, which {tool} cannot trace")
        if again:
            raise BatchNormError(
                f"activation checkpointing must not wrap {describe(self)}: cross-iteration needs the graph"
            )
        return look_back(x, self.before.weight)

    def _has_few(self, found: Moments, tracks: bool, coupling: Coupling) -> bool:
        """Whether groups that a mask or the ranks leave with one value meet the running statistics; else an error."""
        if self.recipe.policy.weights == "frequency":
            # Repetitions that sum to one are weights of another kind: their corrected variance has no meaning.
            whole = found.pool()
            summed = (whole.count > 0) & (whole.count <= 1 + 1e-4) & ~whole.few
            require(~summed.any(), REPEATED, self)
        if coupling.takes_one_value:
            return False
        if tracks and self.recipe.policy.too_few == "population":
            return True
        require(~found.few.any(), SEVERAL, self)
        return False


# A layer that does not track has no step; couplings that would ask are replaced before.
_NO_TIME = Now(1.0, None, 0.0)
