"""The layer itself: owns state, calls pure functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm import kernels
from batchnorm.errors import BatchNormError, check
from batchnorm.layers import fused, normalise
from batchnorm.layers.activation import SMALLEST_WEIGHT, InPlace, activate, check_activation
from batchnorm.layers.choices import Recipe
from batchnorm.layers.couplings import BatchCoupling, Coupling, Plan, Returned, SecondMoment
from batchnorm.layers.cross_iteration import look_back
from batchnorm.layers.estimators import Now, State
from batchnorm.layers.inference import Mixture
from batchnorm.layers.masks import Given, required
from batchnorm.layers.moments import Moments
from batchnorm.layers.naming import describe
from batchnorm.layers.normalise import Sharing
from batchnorm.layers.recompute import ForwardRecord, recomputing
from batchnorm.layers.statistics import NARROW, Statistics
from batchnorm.layers.table import recipe_for


class BatchNorm(Statistics):
    """Batch normalization of any rank and channel axis; what `BatchNorm1d`, `2d` and `3d` share.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm(16, channel_axis=-1)
        >>> layer(torch.randn(8, 5, 5, 16)).shape
        torch.Size([8, 5, 5, 16])

    Arguments are those of `BatchNorm2d`; channel_axis says which axis holds the channels.

    Raises:
        BatchNormError: fewer than two axes, and as `BatchNorm2d`.
    """

    # Class attributes hold the defaults, so that a stock layer becomes one of these by changing its class alone.
    frozen: bool = False
    paused: bool = False
    accumulating: bool = False
    channel_axis: int = 1
    activation: str | None = None
    negative_slope: float = 0.01
    inplace: bool = False
    fused_from: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: Any = "estimator",
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        method: str = "batchnorm",
        channel_axis: int = 1,
        activation: str | None = None,
        negative_slope: float = 0.01,
        inplace: bool = False,
        **choices: Any,
    ) -> None:
        recipe = recipe_for(method, **choices)
        check_activation(activation, negative_slope, inplace)
        plain = isinstance(recipe.coupling, BatchCoupling) and recipe.extent.groups(10**6) == 1
        check(not inplace or plain, "inplace", "False with ghost groups or another coupling than the batch's", inplace)
        start: Any = recipe.estimator.momentum if isinstance(momentum, str) else momentum
        # bias= came to torch's layers after the oldest torch this package supports.
        extra = {} if bias else {"bias": bias}
        super().__init__(num_features, eps, start, affine, track_running_stats, device, dtype, **extra)
        self.channel_axis, self.activation = channel_axis, activation
        self.negative_slope, self.inplace = negative_slope, inplace
        self.adopt(recipe)

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        weights: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Normalise `(N, C, *)`: with the batch in training (and move the statistics), else with the stored.

        Args:
            input: floating point, channels at `channel_axis`.
            mask: boolean `(N, *spatial)`, True where data counts; output and gradient are zero elsewhere.
            lengths: `(N,)` integers for inputs `(N, C, L)`; what lies beyond is padding.
            weights: non-negative sample weights `(N,)` or `(N, *spatial)`; weight 0 is padding.
            residual: added to the output before the activation.
        """
        if isinstance(input, torch.fx.Proxy):
            # symbolic_trace keeps only torch.nn modules whole; ask it to keep this one too.
            named = {"mask": mask, "lengths": lengths, "weights": weights, "residual": residual}
            named = {name: value for name, value in named.items() if value is not None}
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), named)
        if self.channel_axis != 1:
            input = input.movedim(self.channel_axis, 1)
            residual = None if residual is None else residual.movedim(self.channel_axis, 1)
        self._check_input_dim(input)
        sample_weight = None
        if not (mask is None and lengths is None and weights is None and fused.unweighted(self)):
            sample_weight = self._weight_of(input, Given(mask, lengths, weights))
        done = fused.forward(self, input, sample_weight, residual)
        if done is not None:
            return done if self.channel_axis == 1 else done.movedim(1, self.channel_axis)
        y = self._normalised(input, sample_weight, residual is None)
        if not (self.inplace and self.training):
            y = activate(y, self.activation, self.negative_slope, residual)
        elif residual is not None:
            raise BatchNormError("residual must be None with inplace=True, which has only its output to go back from")
        return y if self.channel_axis == 1 else y.movedim(1, self.channel_axis)

    def _weight_of(self, x: Tensor, given: Given) -> Tensor | None:
        """The mask or weights of this call, or those of the context around it, as `(N, 1, *)`."""
        held = self.__dict__.get("_given")
        kind = self.recipe.extent.requires
        if given.kind is None:
            if held is None:
                if kind is not None:
                    required(kind, given, describe(self))
                return None
            given = held
        if kind is not None:
            required(kind, given, describe(self))
        if self.recipe.coupling.looks_back:
            raise BatchNormError(f"{given.kind} must be None: {self.recipe.coupling!r} cannot leave samples out")
        try:
            return given.check().on(x)
        except BatchNormError as error:
            raise BatchNormError(f"{error}, in {describe(self)}") from None

    def _normalised(self, x: Tensor, weight: Tensor | None, alone: bool) -> Tensor:
        if self.running_mean is not None and self.running_mean.dtype in NARROW:
            self._widen()
        recipe = self.recipe
        if (self.frozen or not self.training) and self.running_mean is not None:
            if isinstance(recipe.inference, Mixture) and not self.training and x.numel():
                return recipe.coupling.finish(self._with_mixture(x, weight, recipe.inference))
            return recipe.coupling.finish(self._with_stored(x, weight))
        # A paused layer keeps its coupling and moves nothing; one that does not track uses the batch.
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        if x.numel() == 0:
            # torch's function keeps the graph for an empty batch; nothing may move, not even the counter.
            return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        coupling = recipe.coupling
        if coupling.reads_population and not tracks:
            coupling = BatchCoupling() if coupling.centres else SecondMoment()
        groups = recipe.extent.groups(x.shape[0])
        fewest = x.shape[0] // groups * (x.numel() // (x.shape[0] * x.shape[1]))
        if fewest == 1 and not coupling.takes_one_value:
            if tracks and recipe.policy.too_few == "population":
                return self._with_stored(x, weight)
            raise BatchNormError(
                f"Expected more than 1 value per channel when training, got input size {x.size()} in "
                f"{describe(self)}; use a larger batch, drop the last one, or Policy(too_few='population')"
            )
        if type(coupling) is BatchCoupling and groups == 1 and weight is None:
            return self._plain(x, tracks)
        sharing = Sharing(groups, weight, recipe.policy.weights == "reliability", coupling.centres)
        return coupling.finish(self._coupled(x, sharing, coupling, tracks))

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        return self.affine_part("weight"), self.affine_part("bias")

    def _with_stored(self, x: Tensor, sample_weight: Tensor | None) -> Tensor:
        mean, var = self.stat("running_mean"), self.stat("running_var")
        weight, bias = self._affine()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Backward holds its own copies: the buffers may move before it runs.
            mean, var = mean.clone(), var.clone()
        # CPU kernels refuse half-precision parameters beside float32 statistics.
        if weight is not None and weight.dtype in NARROW:
            weight = weight.to(mean.dtype)
        if bias is not None and bias.dtype in NARROW:
            bias = bias.to(mean.dtype)
        if sample_weight is None:
            return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        selected = sample_weight != 0
        y = functional.batch_norm(torch.where(selected, x, 0), mean, var, weight, bias, False, 0.0, self.eps)
        return torch.where(selected, y, 0)

    def _with_mixture(self, x: Tensor, sample_weight: Tensor | None, inference: Mixture) -> Tensor:
        centres = self.recipe.coupling.centres
        groups = inference.groups(len(x))
        sharing = Sharing(groups, sample_weight, False, centres)
        state = self._state(kernels.wide_dtype(x.device))

        def plan_of(here: Moments) -> Plan:
            return inference.plan(here, state, len(x) // groups, centres)

        return self._spell_or_pass(x, sharing, plan_of, None)

    def _plain(self, x: Tensor, tracks: bool) -> Tensor:
        """The batch normalises: torch's fused kernel."""
        weight, bias = self._affine()
        moves = tracks and not self.paused and not recomputing()
        if self.inplace and self.training and not normalise.needs_spelling(x):
            y, batch = self._in_place(x, weight, bias)
            if moves:
                self._move(batch, None)
            return y
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        y, mean, var = kernels.batch_norm_train(x, weight, bias, self.eps, dtype)
        if moves:
            n = torch.full_like(mean, x.numel() // x.shape[1])
            self._move(Moments(n, mean.detach(), var.detach() * (n - 1)), None)
        return activate(y, self.activation, self.negative_slope, None) if self.inplace else y

    def _in_place(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Moments]:
        if weight is not None:
            message = (
                f"weight must be at least {SMALLEST_WEIGHT} in every channel with inplace=True, which divides by it"
            )
            _require((weight.detach().abs() >= SMALLEST_WEIGHT).all(), message, self)
        batch = normalise.batch_moments(x, Sharing())
        invstd = torch.rsqrt(batch.var(0) + self.eps)
        y: Any = InPlace.apply(x, weight, bias, batch.mean, invstd, self.negative_slope)
        return y, batch.pool()

    def _coupled(self, x: Tensor, sharing: Sharing, coupling: Coupling, tracks: bool) -> Tensor:
        """Any coupling over any extent: moments, plan, the passes, and the step of the statistics."""
        recipe, again = self.recipe, recomputing()
        moves = tracks and not self.paused and not again
        before = self._look_back(x, again) if coupling.looks_back else None
        batch = normalise.batch_moments(x, sharing)
        pooled = batch.pool()
        state, now = self._situation(pooled, before, again) if tracks else (State(pooled.mean, pooled.mean), _NO_TIME)
        met = state
        final, ok = None, None
        if tracks and recipe.extent.sequential:
            met, final, ok = self._stream(batch, state, now)

        def plan_of(found: Moments) -> Plan:
            plan = coupling.plan(found, met, now, recipe.estimator)
            return plan if sharing.weight is None else self._not_too_few(plan, found, state, tracks)

        pull = None if coupling.exact else self._puller(coupling, now)
        y = self._spell_or_pass(x, sharing, plan_of, pull, batch)
        if moves and final is None:
            self._move(pooled, coupling.step(pooled, state, now), now)
        elif moves and final is not None and ok is not None:
            self._commit(final, ok.any(), (~ok).any())
        return y

    def _spell_or_pass(
        self, x: Tensor, sharing: Sharing, plan_of: Any, pull: Any, batch: Moments | None = None
    ) -> Tensor:
        weight, bias = self._affine()

        def spell(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return normalise.spelled(x, weight, bias, plan_of, sharing, self.eps)

        if pull is None and normalise.needs_spelling(x):
            return spell(x, weight, bias)
        if pull is not None and normalise.transformed():
            raise BatchNormError(
                f"coupling {self.recipe.coupling!r} cannot be transformed by torch.func in training: its backward is an "
                "estimate with a memory, not a derivative; use eval mode, or autograd"
            )
        found = normalise.batch_moments(x, sharing) if batch is None else batch
        rule = normalise.Backward(spell if pull is None else None, pull)
        return normalise.four_passes(x, weight, bias, plan_of(found), found, sharing, self.eps, rule)

    def _look_back(self, x: Tensor, again: bool) -> dict[str, Tensor]:
        if self.before is None:
            raise BatchNormError(
                f"{describe(self)} must know the convolution before it: use batchnorm.convert(model, 'cbn') on the "
                "whole model, or layer.attach(conv)"
            )
        if torch.compiler.is_compiling():
            raise BatchNormError(
                "cross-iteration takes a derivative inside its forward, which torch.compile cannot trace"
            )
        if again:
            raise BatchNormError(
                f"activation checkpointing must not wrap {describe(self)}: cross-iteration needs the graph"
            )
        return look_back(x, self.before.weight)

    def _not_too_few(self, plan: Plan, found: Moments, state: State, tracks: bool) -> Plan:
        """Masked groups of one value: an error, or the running statistics."""
        if self.recipe.coupling.takes_one_value:
            return plan
        few = (found.count > 0) & (found.effective_count <= 1)
        if not (tracks and self.recipe.policy.too_few == "population"):
            _require(~few.any(), "mask must leave more than 1 value per channel when training", self)
            return plan
        share = torch.where(few, 0.0, plan.share)
        mean, var = torch.where(few, state.mean, plan.mean), torch.where(few, state.var, plan.var)
        ratio = None if plan.ratio is None else torch.where(few, 1.0, plan.ratio)
        offset = None if plan.offset is None else torch.where(few, 0.0, plan.offset)
        return plan._replace(mean=mean, var=var, share=share, ratio=ratio, offset=offset)

    def _puller(self, coupling: Coupling, now: Now) -> Any:
        def pull(back: Returned) -> tuple[Tensor, Tensor]:
            u, v, new = coupling.pull(back, self._state(back.sum_g.dtype), now)
            if not self.paused:
                # An overflowing step of mixed precision must not stay in the controllers for ever.
                self._write_memory(new, torch.isfinite(back.sum_g).all() & torch.isfinite(back.sum_gx).all())
            return u, v

        return pull

    @torch.no_grad()
    def _situation(self, pooled: Moments, before: dict[str, Tensor] | None, again: bool) -> tuple[State, Now]:
        """The statistics and the step this forward meets; a recomputed one meets those of its first."""
        reads = self.recipe.coupling.reads_population
        record = self.__dict__.setdefault("_record", ForwardRecord()) if reads else None
        if again and record is not None:
            found = record.recall(pooled.mean)
            if found is not None:
                return found
        state, now = self._state(pooled.mean.dtype), self._now(pooled.mean.device, before)
        if record is not None and not torch.compiler.is_compiling():
            record.remember(pooled.mean, state, now)
        return state, now

    @torch.no_grad()
    def _stream(self, batch: Moments, state: State, now: Now) -> tuple[State, State, Tensor]:
        """Group after group: what each meets `(groups, C)`, what is left at the end, which groups counted."""
        met: list[State] = []
        counted: list[Tensor] = []
        for group in range(len(batch.mean)):
            met.append(state)
            row = batch.row(group)
            new = self.recipe.estimator.step(state, row, now)
            ok = self._acceptable(row, new)
            state = State(torch.where(ok, new.mean, state.mean), torch.where(ok, new.var, state.var), state.memory)
            counted.append(ok)
        means, variances = torch.stack([s.mean for s in met]), torch.stack([s.var for s in met])
        return State(means, variances, state.memory), state, torch.stack(counted)

    def _acceptable(self, batch: Moments, new: State) -> Tensor:
        """Whether a batch may enter the statistics: finite, not empty, and enough of it for a variance."""
        present = (batch.count > 0).all()
        if self.recipe.policy.nonfinite == "propagate":
            return present
        ok = torch.isfinite(batch.mean).all() & torch.isfinite(batch.m2).all()
        if self.recipe.policy.nonfinite == "raise":
            _require(ok | ~present, "batch statistics must be finite", self)
        return ok & present & torch.isfinite(new.var).all()

    @torch.no_grad()
    def _move(self, batch: Moments, memory: dict[str, Tensor] | None, now: Now | None = None) -> None:
        """Step 3: move the running statistics, unless the batch is not finite."""
        if self.accumulating:
            self._pend(batch)
            return
        state = self._state(batch.mean.dtype)
        new = self.recipe.estimator.step(state, batch, self._now(batch.mean.device) if now is None else now)
        ok = self._acceptable(batch, new)
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
        count = getattr(self, "num_batches_skipped", None)
        if count is not None:
            count.add_(skipped)

    def _pend(self, batch: Moments) -> None:
        """Keep a micro-batch for the one update that `accumulate` makes."""
        held = self._pending()
        ok = torch.isfinite(batch.mean).all() & torch.isfinite(batch.m2).all() & (batch.count > 0).all()
        new = held.merge(batch)
        for name, value in (("count", new.count), ("mean", new.mean), ("m2", new.m2)):
            buffer = getattr(self, f"pending_{name}")
            buffer.copy_(torch.where(ok, value, buffer))
        squares = new.count if new.count_squared is None else new.count_squared
        self.pending_count_squared.copy_(torch.where(ok, squares, self.pending_count_squared))  # pyright: ignore

    def _pending(self) -> Moments:
        count, mean, m2, squares = (getattr(self, f"pending_{n}") for n in ("count", "mean", "m2", "count_squared"))
        return Moments(count.clone(), mean.clone(), m2.clone(), squares.clone())

    def start_accumulating(self) -> None:
        """Collect moments instead of moving; see `batchnorm.accumulate`."""
        wide = kernels.wide_dtype(self.running_mean.device)  # pyright: ignore[reportOptionalMemberAccess]
        for name in ("count", "count_squared", "mean", "m2"):
            zero = torch.zeros(self.num_features, dtype=wide, device=self.running_mean.device)  # pyright: ignore
            self.register_buffer(f"pending_{name}", zero, persistent=False)
        self.accumulating = True

    @torch.no_grad()
    def stop_accumulating(self, land: bool) -> None:
        """Make the one update from what was collected, or none."""
        self.accumulating = False
        batch = self._pending()
        if land and bool((batch.count > 0).any()):
            state, now = self._state(batch.mean.dtype), self._now(batch.mean.device)
            self._move(batch, self.recipe.coupling.step(batch, state, now), now)
        for name in ("count", "count_squared", "mean", "m2"):
            del self._buffers[f"pending_{name}"]
            self._non_persistent_buffers_set.discard(f"pending_{name}")

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise BatchNormError(f"input must have at least 2 axes (N, C, ...); it had {input.dim()}")

    def extra_repr(self) -> str:
        """Torch's line, and what differs from it."""
        default = Recipe()
        parts = [
            f"{name}={getattr(self.recipe, name)!r}"
            for name in ("extent", "estimator", "coupling", "inference", "policy")
            if getattr(self.recipe, name) != getattr(default, name)
        ]
        for name in ("channel_axis", "activation", "inplace", "frozen"):
            if getattr(self, name) != getattr(BatchNorm, name):
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([super().extra_repr(), *parts, *([f"banks={self.bank_names}"] if self.bank_names else [])])


# A layer that does not track has no step; couplings that would ask are replaced before.
_NO_TIME: Any = Now(None, None, 0.0)  # pyright: ignore[reportArgumentType]


def _require(condition: Tensor, message: str, layer: BatchNorm) -> None:
    """Raise without waiting for the value: an error in eager mode, an assertion in compiled code."""
    try:
        torch._assert_async(condition, message)
    except RuntimeError as error:
        raise BatchNormError(f"{message}: {describe(layer)}") from error
