"""Plain batch normalization through torch's fused kernel, made accurate for a large mean.

torch's CPU kernel evaluates `alpha * x + beta` in float32 and its mean is a float32: at mean 1e5
and standard deviation 1, y is off by 6e-3 (contiguous) to 4.8 (channels_last). Batch normalization
does not change when a constant is taken off each channel, so taking off the mean of a few of the
channel's values beforehand costs one pass and removes the problem. Half-precision data are left as they are:
their own rounding is larger than the kernel's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import native
from batchnorm.kernels.shapes import NARROW, beside, per_channel, wide_dtype


class FusedResult(NamedTuple):
    """y, and the batch's mean and unbiased variance per channel in the wide dtype."""

    y: Tensor
    mean: Tensor
    var_unbiased: Tensor


def batch_norm_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, stats_dtype: torch.dtype
) -> FusedResult:
    """Normalise `(N, C, *)` with its own statistics; autograd, forward AD and compilers see torch operations.

    stats_dtype is the dtype of the layer's statistics (never narrower than float32). The kernel is
    asked for the variance through scratch buffers and a momentum of 1, because recovering it from
    the inverse standard deviation loses it where it is smaller than eps.
    """
    wide = wide_dtype(x.device)
    # new_zeros, so that under vmap every batch has its own.
    scratch_mean = x.new_zeros(x.shape[1], dtype=stats_dtype)
    scratch_var = torch.zeros_like(scratch_mean)
    weight = None if weight is None else weight.to(stats_dtype)
    bias = None if bias is None else bias.to(stats_dtype)
    # cuDNN and CUDA's own kernel subtract the mean before scaling, so only the CPU needs the shift.
    if x.dtype == torch.float32 and x.device.type == "cpu":
        shift = _near_mean(x.detach())
        x = x - per_channel(shift, x)
        y = torch.native_batch_norm(x, weight, bias, scratch_mean, scratch_var, True, 1.0, eps)[0]
        return FusedResult(y, shift.to(wide) + scratch_mean.to(wide), scratch_var.to(wide))
    y = torch.native_batch_norm(x, weight, bias, scratch_mean, scratch_var, True, 1.0, eps)[0]
    return FusedResult(y, scratch_mean.to(wide), scratch_var.to(wide))


def batch_norm_stored(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Normalise `(N, C, *)` on the CPU with stored statistics, outside autograd, in the strides of x."""
    nothing = torch.empty(2, 0, dtype=mean.dtype if x.dtype in NARROW else x.dtype, device="cpu").unbind(0)
    y = native.blank(x)
    torch.native_batch_norm(x, beside(weight, mean), beside(bias, mean), mean, var, False, 0.0, eps, out=(y, *nothing))
    return y


def _near_mean(x: Tensor) -> Tensor:
    """The mean of a few dozen values of each channel, spread over samples and positions.

    A single value would do where the kernel adds in double. In channels_last it adds hundreds of
    thousands of float32 values in a row, and those sums must stay small.
    """
    some = (slice(None, None, max(1, x.shape[0] // 32)), slice(None))
    grid = tuple(slice(None, None, max(1, size // 2)) for size in x.shape[2:])
    # A shift that is not finite would make the mean of a channel with an infinity NaN, where torch's is infinite.
    return x[some + grid].mean((0, *range(2, x.dim()))).nan_to_num(0.0, 0.0, 0.0)
