"""The layer itself: owns state, calls pure functions."""

from __future__ import annotations

import math
import warnings
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm import kernels
from batchnorm.arguments import (
    NOT_NEGATIVE,
    Kind,
    a_device,
    a_flag,
    a_floating_dtype,
    an_axis,
    arguments,
    number,
    told,
    whole,
    word,
)
from batchnorm.errors import ArgumentError, BatchNormError, check
from batchnorm.kernels import calls, native
from batchnorm.layers import backends, rule, step, traced
from batchnorm.layers.activation import Activation, activate, check_activation
from batchnorm.layers.asserting import tracing, transformed
from batchnorm.layers.choices.couplings import Coupling
from batchnorm.layers.choices.cross_iteration import look_back
from batchnorm.layers.choices.inference import Inference
from batchnorm.layers.choices.recipe import Choices, Momentum, starting_momentum
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.choices.spelling import differences
from batchnorm.layers.choices.table import Method, recipe_for
from batchnorm.layers.masks import MaskInput, require_weights
from batchnorm.layers.memory import Memory
from batchnorm.layers.moments import Moments
from batchnorm.layers.movement import Moving, require, require_invertible
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import require as require_operands
from batchnorm.layers.operands import require_axis, require_layout
from batchnorm.layers.recompute import (
    ForwardRecord,
    as_first,
    bookkeeping,
    circumstances_of,
    may_run_again,
    recomputing,
)
from batchnorm.layers.statistics import NARROW
from batchnorm.layers.step import Plan, Sharing

# Of every layer's constructor.
ARGUMENTS: dict[str, Kind] = {
    "eps": NOT_NEGATIVE,
    "affine": a_flag,
    "track_running_stats": a_flag,
    "device": a_device,
    "dtype": a_floating_dtype,
    "bias": a_flag,
    "activation": word(Activation),
    "negative_slope": number("a number"),
}


class BatchNorm(Moving):
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
    channel_axis: int = 1
    activation: Activation | None = None
    negative_slope: float = 0.01
    inplace: bool = False
    fused_from: str | None = None

    @arguments(num_features=whole(0), channel_axis=an_axis, inplace=a_flag, **ARGUMENTS)
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: Momentum = "estimator",
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        method: Method = "batchnorm",
        channel_axis: int = 1,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        inplace: bool = False,
        **choices: Unpack[Choices],
    ) -> None:
        recipe = recipe_for(method, **choices)
        check_activation(activation, negative_slope, inplace)
        plain = recipe.coupling.is_plain and not recipe.extent.splits
        check(not inplace or plain, "inplace", "False with ghost groups or another coupling than the batch's", inplace)
        start: Any = starting_momentum(momentum, recipe)
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

        Raises:
            BatchNormError: one value per channel in training, a mask, lengths or weights of another
                kind or shape, a residual with `inplace=True`.
        """
        if isinstance(input, torch.fx.Proxy):
            # symbolic_trace keeps only torch.nn modules whole; ask it to keep this one too.
            named = {"mask": mask, "lengths": lengths, "weights": weights, "residual": residual}
            named = {name: value for name, value in named.items() if value is not None}
            tracer: Any = input.tracer
            if type(tracer).__name__ == "QuantizationTracer":
                warnings.warn(
                    f"FX quantization fuses torch's own classes alone and leaves {type(self).__name__} "
                    f"{tracer.path_of_module(self)!r} unfused; call batchnorm.to_stock(model) first",
                    stacklevel=2,
                )
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), named)
        if not isinstance(input, Tensor):
            raise ArgumentError(f"input must be a tensor; it was {told(input)}, in {describe(self)}")
        if residual is not None and (not isinstance(residual, Tensor) or residual.is_complex()):
            raise ArgumentError(f"residual must be a real tensor; it was {told(residual)}, in {describe(self)}")
        if self.channel_axis != 1:
            require_axis(self, input)
            input = input.movedim(self.channel_axis, 1)
            residual = None if residual is None else residual.movedim(self.channel_axis, 1)
        self._check_input_dim(input)
        if input.layout is not torch.strided:
            require_layout(self, input)
        self._check_eps()
        given = None if mask is None and lengths is None and weights is None else MaskInput(mask, lengths, weights)
        if self.training and not self.frozen and not torch.compiler.is_compiling():
            y = self._on_record(input, given, residual)
        else:
            y = self._output(input, given, residual)
        return y if self.channel_axis == 1 else y.movedim(1, self.channel_axis)

    def _on_record(self, x: Tensor, given: MaskInput | None, residual: Tensor | None) -> Tensor:
        """The output; remembered where it may be recomputed, and then as it was the first time."""
        record = self.__dict__.get("_record")
        if record is not None and recomputing():
            with bookkeeping():
                first = record.recall(x)
            if first is not None:
                with as_first(self, first):
                    return self._output(x, given, residual)
        elif may_run_again() and not transformed():
            if record is None:
                record = self.__dict__["_record"] = ForwardRecord()
            with bookkeeping():
                self.__dict__["_forward"] = record.begin(x, circumstances_of(self))
            try:
                return self._output(x, given, residual)
            finally:
                self.__dict__.pop("_forward", None)
        return self._output(x, given, residual)

    def _output(self, input: Tensor, given: MaskInput | None, residual: Tensor | None) -> Tensor:
        sample_weight = None
        if given is not None or self._weighted():
            sample_weight = self._weight_of(input, given or MaskInput())
        if self.inplace and residual is not None:
            raise BatchNormError("residual must be None with inplace=True, whose backward starts from the output alone")
        if input.dim() == 3 and self.channel_axis == 1 and not self._stored_alone() and not input.is_contiguous():
            # As torch, which keeps channels innermost from four axes on: its outputs and gradients can be viewed.
            input = input.contiguous()
        y = self._natively(input, sample_weight, residual)
        if y is None:
            require_operands(self, input, residual)
        if y is None and self._goes_in_place(input, sample_weight):
            y = self._in_place(input)
        elif y is None:
            y = activate(self._normalised(input, sample_weight), self.activation, self.negative_slope, residual)
            if residual is not None and sample_weight is not None:
                y = torch.where(sample_weight != 0, y, 0)
        return y

    def _stored_alone(self) -> bool:
        """Whether torch's own kernel with the stored statistics makes the output, in strides of its own."""
        return (self.frozen or not self.training) and self.running_mean is not None and self.activation is None

    def _natively(self, x: Tensor, weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
        """The whole call by the native kernels, or None where they do not serve it."""
        return (traced if torch.compiler.is_compiling() else backends).forward(self, x, weight, residual)

    def _weighted(self) -> bool:
        """Whether a context around the call gives a mask or weights, or the extent requires them."""
        return "_given" in self.__dict__ or self.recipe.extent.requires is not None

    def _weight_of(self, x: Tensor, given: MaskInput) -> Tensor | None:
        """The mask or weights of this call, or those of the context around it, as `(N, 1, *)`."""
        if given.kind is None:
            given = self.__dict__.get("_given") or given
        kind = self.recipe.extent.requires
        if kind is not None and not given.meets(kind):
            said = kind if kind == "mask" else f"{kind}={kind}"
            raise BatchNormError(
                f"{kind} must be given to {describe(self)}; it was {given.kind or 'None'}: call layer(x, {said}), or "
                f"run the model inside batchnorm.masked(model, {said})"
            )
        if given.kind is None:
            return None
        if self.recipe.coupling.looks_back:
            raise BatchNormError(f"{given.kind} must be None: {self.recipe.coupling!r} cannot leave samples out")
        try:
            weight = given.check().on(x)
        except BatchNormError as error:
            raise BatchNormError(f"{error}, in {describe(self)}") from None
        if given.weights is not None and weight is not None:
            require_weights(weight, self)
        return weight

    def _normalised(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if self.running_mean is not None and self.running_mean.dtype in NARROW:
            self._widen()
        recipe = self.recipe
        if (self.frozen or not self.training) and self.running_mean is not None:
            if recipe.inference.mixes and x.numel():
                return recipe.coupling.finish(self._with_mixture(x, weight, recipe.inference), weight)
            return recipe.coupling.finish(self._with_stored(x, weight), weight)
        # A paused layer keeps its coupling and moves nothing; one that does not track uses the batch.
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        ranks = self._ranks() if self.training else None
        if x.numel() == 0 and ranks is None:
            # torch's function keeps the graph for an empty batch; nothing may move, not even the counter.
            return functional.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        coupling = recipe.coupling if tracks else recipe.coupling.untracked()
        groups = recipe.extent.groups(x.shape[0])
        fewest = x.shape[0] // groups * math.prod(x.shape[2:])
        # With a mask or weights, what they leave decides.
        if fewest == 1 and weight is None and not coupling.takes_one_value and (ranks is None or groups > 1):
            if tracks and recipe.policy.too_few == "population":
                return recipe.coupling.finish(self._with_stored(x, weight), weight)
            raise BatchNormError(
                f"Expected more than 1 value per channel when training, got input size {x.size()} in "
                f"{describe(self)}; use a larger batch, drop the last one, or Policy(too_few='population')"
            )
        if coupling.is_plain and groups == 1 and weight is None and ranks is None:
            return recipe.coupling.finish(self._plain(x, tracks))
        uneven = weight is not None or ranks is not None
        sharing = Sharing(groups, weight, recipe.policy.weights == "reliability", coupling.centres, ranks, uneven)
        return recipe.coupling.finish(self._coupled(x, sharing, coupling, tracks), weight)

    def __prepare_scriptable__(self) -> BatchNorm:
        """What `torch.jit.script` asks before it compiles."""
        raise BatchNormError(
            f"torch.jit.script compiles torch's own layers only, not {describe(self)}: call "
            "batchnorm.to_stock(model) first, or use torch.jit.trace"
        )

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        return self.affine_part("weight"), self.affine_part("bias")

    def _with_stored(self, x: Tensor, sample_weight: Tensor | None) -> Tensor:
        mean, var = self.stat("running_mean"), self.stat("running_var")
        weight, bias = self._affine()
        if torch.is_grad_enabled() and not (torch.compiler.is_compiling() or tracing()):
            # Backward holds its own copies: the buffers may move before it runs. (A trace must not go by gradients.)
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

    def _with_mixture(self, x: Tensor, sample_weight: Tensor | None, inference: Inference) -> Tensor:
        sharing, plan = self._mixing(x, sample_weight, inference)
        return self._spell_or_pass(x, sharing, plan)[0]

    def _mixing(self, x: Tensor, sample_weight: Tensor | None, inference: Any) -> tuple[Sharing, Plan]:
        """Who shares statistics at inference, and how they mix with the stored ones."""
        centres, uneven = self.recipe.coupling.centres, sample_weight is not None
        sharing = Sharing(inference.groups(len(x)), sample_weight, False, centres, uneven=uneven)
        state, positions = self._state(kernels.wide_dtype(x.device)), math.prod(x.shape[2:])
        return sharing, Plan(lambda here: inference.plan(here, state, positions, centres), self.eps, uneven=uneven)

    def _plain(self, x: Tensor, tracks: bool) -> Tensor:
        """The batch normalises: torch's fused kernel."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        y, mean, var = kernels.batch_norm_train(x, *self._affine(), self.eps, dtype)
        if tracks and not self.paused and not recomputing():
            with bookkeeping():
                n = torch.full_like(mean, x.numel() // x.shape[1])
                self._move(Moments(n, mean.detach(), var.detach() * (n - 1)))
        return y

    def _goes_in_place(self, x: Tensor, weight: Tensor | None) -> bool:
        """Whether the form that keeps its output serves this call; every other way activates afterwards."""
        plain = self.inplace and self.training and not self.frozen and weight is None
        several = x.shape[0] * math.prod(x.shape[2:]) > 1
        coupled = self.recipe.coupling.is_plain and not self.recipe.extent.splits
        return plain and several and coupled and self._ranks() is None and not step.needs_spelling(x)

    def _in_place(self, x: Tensor) -> Tensor:
        if self.running_mean is not None and self.running_mean.dtype in NARROW:
            self._widen()
        weight, bias = self._affine()
        if weight is not None:
            require_invertible(weight, self)
        batch = step.batch_moments(x, Sharing())
        plan = Plan(lambda _: (rule.Numbers(), rule.Vectors()), self.eps)
        y = step.pass_through(x, weight, bias, plan, batch, Sharing(), slope=self.negative_slope)
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
        run: Any = step.run,
    ) -> Tensor:
        """Any coupling over any extent: moments, plan, the passes, and the step of the statistics."""
        recipe, again = self.recipe, recomputing()
        moves = tracks and not self.paused and not again
        before = self._look_back(x, again) if coupling.looks_back else None
        ranks = sharing.ranks
        if ranks is not None and recipe.extent.splits:
            # Ghost groups normalise inside their rank; what they pool to is everybody's.
            sharing = sharing._replace(ranks=None)
        batch = step.batch_moments(x, sharing) if batch is None else batch
        pooled = batch.pool()
        if ranks is not None and sharing.ranks is None:
            pooled = ranks.pool(pooled)
        met, now = self._situation(x.device, before, again) if tracks else (State(pooled.mean, pooled.mean), _NO_TIME)
        state, final, ok = met, None, None
        checks_counts = sharing.uneven and not coupling.takes_one_value
        if tracks and recipe.extent.sequential:
            met, final, now, ok = self._stream(batch, state, now, ~batch.few if checks_counts else None)
        for_few = None
        if sharing.uneven and self._has_few(batch, tracks, coupling):
            for_few = met.mean, met.var

        def numbers_of(found: Moments) -> tuple[rule.Numbers, rule.Vectors]:
            return coupling.plan(met, now.having(moments=found))

        def statistics_of(found: Moments) -> tuple[Tensor, Tensor]:
            return coupling.statistics(found, met, now.having(moments=found))

        own = None if coupling.statistics is None else statistics_of
        plan = Plan(numbers_of, self.eps, coupling.detached, sharing.uneven, for_few, own)
        moving = now.having(moments=pooled)
        move = None
        if moves and final is None and not self.accumulating and ranks is sharing.ranks:
            with torch.no_grad():
                move = recipe.estimator.move(state, moving)
                _ = state.mean, state.var  # as they are before they move
        memory = None if coupling.exact else Memory(self, now)
        y, moved = self._spell_or_pass(x, sharing, plan, memory, batch, move, run)
        with bookkeeping():
            if isinstance(moved, Tensor):
                # Of a device: whether the batch entered is not waited for.
                self._write_memory(self._kept(state, moving, pooled), moved)
            elif moved is not None:
                if moved == calls.NOT_FINITE:
                    raise BatchNormError(f"batch statistics must be finite: {describe(self)}")
                if moved == calls.DONE and self.memory_names:
                    self._remember(state, moving, pooled)
            elif moves and final is None:
                # Where all groups met the running statistics, those stay; ranks decide by what they have together.
                several = (pooled if ranks is not None else batch).has_several() if checks_counts else None
                self._move(pooled, now, several)
            elif moves and final is not None and ok is not None:
                self._commit(final, ok.any(), (~ok).any())
        return y

    def _spell_or_pass(
        self,
        x: Tensor,
        sharing: Sharing,
        plan: Plan,
        memory: Memory | None = None,
        batch: Moments | None = None,
        move: rule.Move | None = None,
        run: Any = step.run,
    ) -> tuple[Tensor, int | None]:
        """The output, and what became of the statistics where the move came with it."""
        weight, bias = self._affine()
        if memory is None and step.needs_spelling(x):
            return step.spelled(x, weight, bias, plan, sharing), None
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
        found = step.batch_moments(x, sharing) if batch is None else batch
        call = None
        if not torch.compiler.is_compiling():
            with torch.no_grad():
                call = backends.after_moments(self, x, sharing, plan, found, memory, move)
        if call is None:
            return step.pass_through(x, weight, bias, plan, found, sharing, memory, run=run), None
        y = run(native.arranged(x)[0], weight, bias, None, call)
        return y, call.status if call.moves else None

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
            message = (
                "weights that count repetitions must sum to more than 1 per channel; "
                "Policy(weights='reliability') accepts any scale"
            )
            whole = found.pool()
            summed = (whole.count > 0) & (whole.count <= 1 + 1e-4) & ~whole.few
            require(~summed.any(), message, self)
        if coupling.takes_one_value:
            return False
        if tracks and self.recipe.policy.too_few == "population":
            return True
        message = "training needs at least 2 unmasked values per channel, over all ranks"
        require(~found.few.any(), message, self)
        return False

    def _check_eps(self) -> None:
        """As torch from 2.13 on; before it, the output was NaN."""
        trains = self.training and not self.frozen
        # Assigned since the constructor looked, as the momentum may be.
        if isinstance(self.eps, str | None) or not (self.eps > 0 or (self.eps == 0 and not trains)):
            legal = "positive in training" if trains else "0 or more"
            raise BatchNormError(f"eps must be {legal}; it was {told(self.eps)} in {describe(self)}")

    # How many axes an input has, and torch's words for it.
    _axes: tuple[int, ...] = ()
    _expected = ""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or (self._axes and input.dim() not in self._axes):
            torchs = f": expected {self._expected} input (got {input.dim()}D input)" if self._axes else ""
            legal = " or ".join(map(str, self._axes)) or "at least 2"
            raise BatchNormError(
                f"input must have {legal} axes (N, C, ...); it had {input.dim()}, in {describe(self)}{torchs}"
            )

    def extra_repr(self) -> str:
        """Torch's line, and what differs from it."""
        parts = differences(self.recipe, self.momentum)
        for name in ("channel_axis", "activation", "inplace", "frozen"):
            if getattr(self, name) != getattr(BatchNorm, name):
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([super().extra_repr(), *parts, *([f"banks={self.bank_names}"] if self.bank_names else [])])


# A layer that does not track has no step; couplings that would ask are replaced before.
_NO_TIME = Now(1.0, None, 0.0)
