"""The layer itself: owns state, calls pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.layers import normalise
from batchnorm.layers.choices import Recipe
from batchnorm.layers.estimators import State
from batchnorm.layers.methods import recipe_for
from batchnorm.layers.moments import Moments
from batchnorm.layers.naming import describe
from batchnorm.layers.recompute import ForwardRecord, recomputing

_NARROW = (torch.float16, torch.bfloat16)
STATISTICS = ("running_mean", "running_var", "pooled_count")


class BatchNorm(_BatchNorm):
    """What `BatchNorm1d`, `2d` and `3d` share; on its own it takes any rank from `(N, C)` up.

    Class attributes hold the defaults, so that a stock layer becomes one of these by changing its
    class alone.
    """

    recipe: Recipe = Recipe()
    frozen: bool = False
    paused: bool = False
    pooled_count: Tensor | None
    num_batches_skipped: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | str | None = "estimator",
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        method: str = "batchnorm",
        **choices: Any,
    ) -> None:
        recipe = recipe_for(method, **choices)
        start = recipe.estimator.momentum if isinstance(momentum, str) else momentum
        # bias= came to torch's layers after the oldest torch this package supports.
        extra = {} if bias else {"bias": bias}
        super().__init__(num_features, eps, start, affine, track_running_stats, device, dtype, **extra)
        self.adopt(recipe)

    def adopt(self, recipe: Recipe) -> None:
        """Take a recipe and the buffers it needs; what is there already is kept."""
        self.recipe = recipe
        if self.running_mean is None:
            return
        device = self.running_mean.device
        if "num_batches_skipped" not in self._buffers:
            zero = torch.zeros((), dtype=torch.long, device=device)
            self.register_buffer("num_batches_skipped", zero, persistent=False)
        if recipe.estimator.keeps_count and "pooled_count" not in self._buffers:
            wide = kernels.wide_dtype(device)
            # One element, not a scalar: compiled graphs lose in-place changes of 0-dim float64 CPU tensors.
            self.register_buffer("pooled_count", torch.zeros(1, dtype=wide, device=device))
        elif not recipe.estimator.keeps_count:
            self._buffers.pop("pooled_count", None)
        self._widen()

    def abandon(self) -> None:
        """Drop everything that a stock layer does not have."""
        for name in ("num_batches_skipped", "pooled_count"):
            self._buffers.pop(name, None)
            self._non_persistent_buffers_set.discard(name)
        for name in ("recipe", "frozen", "paused", "_record"):
            self.__dict__.pop(name, None)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, *)`: with the batch in training (and move the statistics), else with the stored."""
        if isinstance(input, torch.fx.Proxy):
            # symbolic_trace keeps only torch.nn modules whole; ask it to keep this one too.
            tracer: Any = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
        self._check_input_dim(input)
        if self.running_mean is not None and self.running_mean.dtype in _NARROW:
            self._widen()
        if (self.frozen or not self.training) and self.running_mean is not None:
            return self._with_stored(input)
        # A paused layer keeps its coupling and moves nothing; one that does not track uses the batch.
        tracks = self.training and self.track_running_stats and self.running_mean is not None
        values = input.numel() // input.shape[1]
        if values == 1:
            if tracks and self.recipe.policy.too_few == "population":
                return self._with_stored(input)
            raise BatchNormError(
                f"Expected more than 1 value per channel when training, got input size {input.size()} in "
                f"{describe(self)}; use a larger batch, drop the last one, or Policy(too_few='population')"
            )
        if values == 0:
            # torch's function keeps the graph for an empty batch; nothing may move, not even the counter.
            return functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return self._with_batch(input, tracks)

    def _with_stored(self, x: Tensor) -> Tensor:
        mean, var, weight, bias = self.running_mean, self.running_var, self.weight, self.bias
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Backward holds its own copies: the buffers may move before it runs.
            mean, var = mean.clone(), var.clone()  # pyright: ignore[reportOptionalMemberAccess]
        # CPU kernels refuse half-precision parameters beside float32 statistics.
        if weight is not None and weight.dtype in _NARROW:
            weight = weight.to(mean.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        if bias is not None and bias.dtype in _NARROW:
            bias = bias.to(mean.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    def _with_batch(self, x: Tensor, tracks: bool) -> Tensor:
        recipe = self.recipe
        moves = tracks and not self.paused and not recomputing()
        if not (tracks and recipe.coupling.reads_population):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            y, mean, var = kernels.batch_norm_train(x, self.weight, self.bias, self.eps, dtype)
            if moves:
                n = torch.full_like(mean, x.numel() // x.shape[1])
                self._move(Moments(n, mean.detach(), var.detach() * (n - 1)))
            return y
        batch = normalise.batch_moments(x)
        population, gain = self._population(batch)

        def spell(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return normalise.spelled(x, weight, bias, recipe.coupling, population, gain, self.eps)

        if normalise.needs_spelling(x):
            y = spell(x, self.weight, self.bias)
        else:
            plan = recipe.coupling.plan(batch, population, gain)
            y = normalise.four_passes(x, self.weight, self.bias, plan, self.eps, spell)
        if moves:
            self._move(batch)
        return y

    def _state(self, dtype: torch.dtype) -> State:
        # Copies, since the buffers move in place while a backward may still need these.
        mean = self.running_mean.to(dtype, copy=True)  # pyright: ignore[reportOptionalMemberAccess]
        var = self.running_var.to(dtype, copy=True)  # pyright: ignore[reportOptionalMemberAccess]
        count = getattr(self, "pooled_count", None)
        return State(mean, var, None if count is None else count.clone())

    def _step(self, device: torch.device) -> Tensor:
        tracked = self.num_batches_tracked
        return torch.ones((), dtype=torch.long, device=device) if tracked is None else tracked + 1

    @torch.no_grad()
    def _population(self, batch: Moments) -> tuple[State, Any]:
        record = self.__dict__.setdefault("_record", ForwardRecord())
        if recomputing():
            found = record.recall(batch.mean)
            if found is not None:
                return found
        state = self._state(batch.mean.dtype)
        gain = self.recipe.estimator.gain(state, batch, self.momentum, self._step(batch.mean.device))
        if not torch.compiler.is_compiling():
            record.remember(batch.mean, state, gain)
        return state, gain

    @torch.no_grad()
    def _move(self, batch: Moments) -> None:
        """Step 3: move the running statistics, unless the batch is not finite."""
        nonfinite = self.recipe.policy.nonfinite
        state = self._state(batch.mean.dtype)
        new = self.recipe.estimator.step(state, batch, self.momentum, self._step(batch.mean.device))
        ok = torch.isfinite(batch.mean).all() & torch.isfinite(batch.m2).all()
        if nonfinite == "raise":
            message = f"batch statistics must be finite; they are not in {type(self).__name__}"
            try:
                torch._assert_async(ok, message)
            except RuntimeError as error:
                raise BatchNormError(f"{message}: {describe(self)}") from error
        if nonfinite == "propagate":
            ok = torch.ones_like(ok)
        self.running_mean.copy_(torch.where(ok, new.mean, state.mean))  # pyright: ignore[reportOptionalMemberAccess]
        self.running_var.copy_(torch.where(ok, new.var, state.var))  # pyright: ignore[reportOptionalMemberAccess]
        count = getattr(self, "pooled_count", None)
        if count is not None and new.count is not None:
            count.copy_(torch.where(ok, new.count, count))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(ok)
        skipped = getattr(self, "num_batches_skipped", None)
        if skipped is not None:
            skipped.add_(~ok)

    def _widen(self) -> None:
        """Statistics are never narrower than float32, whatever cast the module."""
        for name in STATISTICS:
            buffer = self._buffers.get(name)
            if buffer is not None and buffer.dtype in _NARROW:
                self._buffers[name] = buffer.float()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: self._buffers.get(name) for name in STATISTICS}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is not None and new is not None and new.dtype in _NARROW:
                # From the old values: the narrow copy has lost digits already.
                self._buffers[name] = old.to(device=new.device, dtype=torch.float32)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> None:
        key = prefix + "pooled_count"
        count = getattr(self, "pooled_count", None)
        if count is not None and key not in state_dict:
            # A stock checkpoint has no count of values: nothing is known to have been pooled.
            state_dict[key] = torch.zeros_like(count)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._widen()

    def reset_running_stats(self) -> None:
        """Back to mean 0, variance 1 and all counters 0."""
        super().reset_running_stats()
        for name in ("pooled_count", "num_batches_skipped"):
            buffer = self._buffers.get(name)
            if buffer is not None:
                buffer.zero_()

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
        return ", ".join([super().extra_repr(), *parts, *(["frozen=True"] if self.frozen else [])])
