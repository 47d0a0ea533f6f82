"""The layer itself: owns state, calls pure functions."""

from __future__ import annotations

import warnings
from typing import Any, Unpack

import torch
from torch import Tensor

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
from batchnorm.kernels import triton
from batchnorm.layers import backends, device, traced
from batchnorm.layers.activation import Activation, check_activation, finished
from batchnorm.layers.choices.recipe import Choices, Momentum, Recipe, starting_momentum
from batchnorm.layers.choices.spelling import differences
from batchnorm.layers.choices.table import Method, recipe_for
from batchnorm.layers.general import Normalising
from batchnorm.layers.masks import MaskInput, weight_of
from batchnorm.layers.naming import describe
from batchnorm.layers.operands import require, require_axis, require_layout
from batchnorm.layers.recompute import graph_task, on_record, saved_tensor_hooks

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


def started(method: Method, choices: Choices, momentum: Momentum, bias: bool) -> tuple[Recipe, Any, dict[str, bool]]:
    """What a constructor makes of its arguments: the recipe, the first momentum, and what only newer torches take."""
    recipe = recipe_for(method, **choices)
    # bias= came to torch's layers after the oldest torch this package supports.
    return recipe, starting_momentum(momentum, recipe), {} if bias else {"bias": bias}


class BatchNorm(Normalising):
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
        recipe, start, extra = started(method, choices, momentum, bias)
        check_activation(activation, negative_slope, inplace)
        plain = recipe.coupling.is_plain and not recipe.extent.splits
        check(not inplace or plain, "inplace", "False with ghost groups or another coupling than the batch's", inplace)
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
        if not isinstance(input, Tensor):
            return self._without_values(input, mask=mask, lengths=lengths, weights=weights, residual=residual)
        if residual is not None and (not isinstance(residual, Tensor) or residual.is_complex()):
            raise ArgumentError(f"residual must be a real tensor; it was {told(residual)}, in {describe(self)}")
        axis = self.channel_axis
        if axis != 1:
            require_axis(self, input)
            input = input.movedim(axis, 1)
            residual = None if residual is None else residual.movedim(axis, 1)
        self._check_input_dim(input)
        if input.layout is not torch.strided:
            require_layout(self, input)
        self._check_eps()
        given = None if mask is None and lengths is None and weights is None else MaskInput(mask, lengths, weights)
        compiling = torch.compiler.is_compiling()
        if compiling or not self.training or self.frozen or (
            torch.is_grad_enabled() and graph_task() == -1 and saved_tensor_hooks(False) is None
        ):  # fmt: skip
            y = self._output(input, given, residual)
        else:
            y = on_record(self, input, given, residual)
        return y if axis == 1 else y.movedim(1, axis)

    def _without_values(self, input: Any, **given: Any) -> Any:
        """What is no tensor: a node of a graph to be, or a mistake."""
        if not isinstance(input, torch.fx.Proxy):
            raise ArgumentError(f"input must be a tensor; it was {told(input)}, in {describe(self)}")
        # symbolic_trace keeps only torch.nn modules whole; ask it to keep this one too.
        tracer: Any = input.tracer
        if type(tracer).__name__ == "QuantizationTracer":
            warnings.warn(
                f"FX quantization fuses torch's own classes alone and leaves {type(self).__name__} "
                f"{tracer.path_of_module(self)!r} unfused; call batchnorm.to_stock(model) first",
                stacklevel=3,
            )
        named = {name: value for name, value in given.items() if value is not None}
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), named)

    def _output(self, input: Tensor, given: MaskInput | None, residual: Tensor | None) -> Tensor:
        sample_weight = None
        if given is not None or self._given is not None or self.recipe.extent.requires is not None:
            sample_weight = weight_of(self, input, given or MaskInput())
        if self.inplace and residual is not None:
            raise BatchNormError("residual must be None with inplace=True, whose backward starts from the output alone")
        if input.dim() == 3 and self.channel_axis == 1 and not self._stored_alone() and not input.is_contiguous():
            # As torch, which keeps channels innermost from four axes on: its outputs and gradients can be viewed.
            input = input.contiguous()
        y = self._natively(input, sample_weight, residual)
        if y is None:
            require(self, input, residual)
        if y is None and self._goes_in_place(input, sample_weight):
            y = self._in_place(input)
        elif y is None:
            y = finished(self, self._normalised(input, sample_weight), residual, sample_weight)
        return y

    def _stored_alone(self) -> bool:
        """Whether torch's own kernel with the stored statistics makes the output, in strides of its own."""
        return (self.frozen or not self.training) and self.running_mean is not None and self.activation is None

    def _natively(self, x: Tensor, weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
        """The whole call by the kernels of the CPU or of a device, or None where they do not serve it."""
        if torch.compiler.is_compiling():
            return traced.forward(self, x, weight, residual)
        on_cpu = x.is_cpu and not triton.SWITCHES["interpreted"]
        return backends.forward(self, x, weight, residual, None if on_cpu else device.KERNELS)

    def __prepare_scriptable__(self) -> BatchNorm:
        """What `torch.jit.script` asks before it compiles."""
        raise BatchNormError(
            f"torch.jit.script compiles torch's own layers only, not {describe(self)}: call "
            "batchnorm.to_stock(model) first, or use torch.jit.trace"
        )

    def _check_eps(self) -> None:
        """As torch from 2.13 on; before it, the output was NaN."""
        trains = self.training and not self.frozen
        # Assigned since the constructor looked, as the momentum may be.
        if self.eps is None or isinstance(self.eps, str) or not (self.eps > 0 or (self.eps == 0 and not trains)):
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
