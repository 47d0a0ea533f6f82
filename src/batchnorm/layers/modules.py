"""`BatchNorm1d`, `2d`, `3d` and their lazy forms: torch's classes with this package's forward."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.parameter import is_lazy

from batchnorm.arguments import arguments, told
from batchnorm.errors import ArgumentError
from batchnorm.layers.activation import Activation, check_activation
from batchnorm.layers.choices.recipe import Choices, Momentum
from batchnorm.layers.choices.table import Method
from batchnorm.layers.module import ARGUMENTS, BatchNorm, started
from batchnorm.layers.naming import describe
from batchnorm.layers.statistics import require_names


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """Batch normalization over `(N, C)` or `(N, C, L)`, a drop-in for `torch.nn.BatchNorm1d`.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm1d(16)
        >>> layer(torch.randn(8, 16, 5)).shape
        torch.Size([8, 16, 5])
        >>> careful = batchnorm.BatchNorm1d(16, method="debiased", momentum=0.01)

    See `BatchNorm2d` for arguments, errors, the differences from torch and the source.
    """

    _axes, _expected = (2, 3), "2D or 3D"


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """Batch normalization over `(N, C, H, W)`, a drop-in for `torch.nn.BatchNorm2d`.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm2d(16)
        >>> layer(torch.randn(8, 16, 5, 5)).shape
        torch.Size([8, 16, 5, 5])
        >>> careful = batchnorm.BatchNorm2d(16, method="debiased", momentum=0.01)

    Arguments, defaults, state_dict keys and numbers are torch's: normalise with the biased
    variance of the batch, store the unbiased one, `momentum` is the weight of the new batch and
    None means the cumulative average. momentum may also be a function of the step.

    Further keyword arguments:
        method: a name of `batchnorm.methods()`.
        extent, estimator, coupling, inference, policy: any of the five choices in the method's place.
        activation: "relu", "leaky_relu" (of negative_slope), "relu6", "silu", "hardswish" or "gelu" (the exact
            one), applied to the output; a residual given to the call is added before it.
        inplace: with leaky_relu, keep the output for backward instead of the input. xhat is then
            found again with an error of at most 9 (|z| + |bias|) u / |weight|, z the output before
            the activation and u the unit roundoff, so a |weight| below 0.001 is refused at the
            call: at 0 its gradient would be lost.

    Differences from torch, all on purpose: statistics stay float32 in half-precision models; a
    non-finite batch is skipped and counted in `num_batches_skipped`
    (`Policy(nonfinite="propagate")` is torch's way); an empty batch does not advance the counter;
    a forward recomputed by activation checkpointing does not update twice.

    Raises:
        BatchNormError: one value per channel in training, an unknown method, a momentum out of range.
        ValueError: an input of the wrong rank, as in torch.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.
    """

    _axes, _expected = (4,), "4D"


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """Batch normalization over `(N, C, D, H, W)`, a drop-in for `torch.nn.BatchNorm3d`.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm3d(16)
        >>> layer(torch.randn(8, 16, 3, 5, 5)).shape
        torch.Size([8, 16, 3, 5, 5])

    See `BatchNorm2d` for arguments, errors, the differences from torch and the source.
    """

    _axes, _expected = (5,), "5D"


class _Lazy(_LazyNormBase):
    """num_features comes from the first input; the layer then becomes the plain class."""

    @arguments(**ARGUMENTS)
    def __init__(
        self,
        eps: float = 1e-5,
        momentum: Momentum = "estimator",
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        method: Method = "batchnorm",
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        **choices: Unpack[Choices],
    ) -> None:
        recipe, start, extra = started(method, choices, momentum, bias)
        check_activation(activation, negative_slope, False)
        super().__init__(eps, start, affine, track_running_stats, device, dtype, **extra)
        require_names(self, self.cls_to_become, recipe)  # pyright: ignore
        self.recipe, self.activation, self.negative_slope = recipe, activation, negative_slope

    def initialize_parameters(self, input: Any, *given: Any, **named: Any) -> None:
        """Take the number of channels from the input and the buffers the recipe needs."""
        if not isinstance(input, Tensor):
            raise ArgumentError(f"input must be a tensor; it was {told(input)}, in {describe(self)}")
        self._check_input_dim(input)
        self._become(input)

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **kwargs: Any) -> None:
        held = (state_dict.get(prefix + name) for name in ("running_mean", "weight"))
        channels = next((len(v) for v in held if isinstance(v, Tensor) and not is_lazy(v) and v.dim() == 1), None)
        if channels is not None:
            self._become(torch.empty(1, channels, device="meta"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore

    def _become(self, input: Tensor) -> None:
        fresh = self.has_uninitialized_params()  # pyright: ignore[reportAttributeAccessIssue]
        # Ordinary tensors, also where the first input comes in inference mode.
        with torch.inference_mode(False):
            super().initialize_parameters(input)
        if fresh:
            self.adopt(self.recipe)  # pyright: ignore[reportCallIssue]


class LazyBatchNorm1d(_Lazy, BatchNorm1d):
    """A `BatchNorm1d` whose num_features is taken from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, BatchNorm2d):
    """A `BatchNorm2d` whose num_features is taken from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, BatchNorm3d):
    """A `BatchNorm3d` whose num_features is taken from its first input."""

    cls_to_become = BatchNorm3d
