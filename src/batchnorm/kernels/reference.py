"""The four passes in plain torch operations: the reference, and what transforms trace.

Everything here is differentiable, so the reference forward under autograd is the second spelling
against which every hand-written backward is tested.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.kernels.shapes import RawMoments, compute_dtype, group_sizes, per_channel, wide_dtype


def reduce(x: Tensor, weight: Tensor | None = None, groups: int = 1) -> RawMoments:
    """The moments of `(N, C, *)` per group and channel.

    weight broadcasts against x with channel size 1: a boolean mask (True is data) or sample
    weights. Values of weight zero are selected away before any arithmetic, so a NaN in padding
    stays in the padding.
    """
    if groups == 1:
        chunks = [(x, weight)]
    else:
        sizes = group_sizes(x.shape[0], groups)
        weights = [None] * groups if weight is None else list(torch.split(weight, sizes))
        chunks = list(zip(torch.split(x, sizes), weights, strict=True))
    parts = [_reduce_group(part, part_weight) for part, part_weight in chunks]
    return RawMoments(*(torch.stack(column) for column in zip(*parts, strict=True)))


def _reduce_group(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = wide_dtype(x.device)
    x = x.to(compute_dtype(x))
    selected = None if weight is None else weight != 0
    if weight is None or selected is None:
        n = torch.full((), x.numel() // max(x.shape[1], 1), dtype=wide, device=x.device).expand(x.shape[1])
        n_squared = n
        # Any sample of a channel lies within sqrt(n) standard deviations of its mean, so it is a
        # shift that removes a large mean before anything is summed, at no extra pass.
        shift = _first_sample(x)
    else:
        x = torch.where(selected, x, x.new_zeros(()))
        weight = weight.to(x.dtype).expand(x.shape[0], 1, *x.shape[2:])
        n = _channel_sum(weight, wide).expand(x.shape[1])
        n_squared = _channel_sum(weight.square(), wide).expand(x.shape[1])
        shift = (_channel_sum(weight * x, wide) / _or_one(n)).detach().to(x.dtype)
    centred = x - per_channel(shift, x)
    if selected is not None:
        centred = torch.where(selected, centred, centred.new_zeros(()))
    divisor = _or_one(n)
    first = _weighted_sum(centred, weight, wide) / divisor
    # Corrected two-pass: the rounding of the first mean is taken out again by the sum of deviations.
    rounded = first.detach().to(x.dtype)
    deviation = centred - per_channel(rounded, x)
    if selected is not None:
        deviation = torch.where(selected, deviation, deviation.new_zeros(()))
    rest = _weighted_sum(deviation, weight, wide)
    m2 = _weighted_sum(deviation.square(), weight, wide) - rest * rest / divisor
    return n, n_squared, shift.to(wide) + rounded.to(wide) + rest / divisor, m2.clamp_min(0)


def _or_one(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, torch.ones_like(count))


def _first_sample(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[1])
    return x.detach()[0].reshape(x.shape[1], -1)[:, 0]


def _weighted_sum(x: Tensor, weight: Tensor | None, wide: torch.dtype) -> Tensor:
    return _channel_sum(x if weight is None else x * weight, wide)


def _channel_sum(x: Tensor, wide: torch.dtype) -> Tensor:
    """Sum within a sample in the compute dtype (pairwise inside torch), over samples in the wide one."""
    inner = x.sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x
    return inner.sum(0, dtype=wide)


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`(x - mean) * scale + shift` per group and channel, the mean taken off as a high and a low part."""
    if mean.shape[0] > 1:
        parts = torch.split(x, group_sizes(x.shape[0], mean.shape[0]))
        rows = zip(parts, mean, scale, shift, strict=True)
        return torch.cat([apply(part, m[None], s[None], b[None]) for part, m, s, b in rows])
    dtype = compute_dtype(x)
    y = _centred(x, mean[0]) * per_channel(scale[0].to(dtype), x) + per_channel(shift[0].to(dtype), x)
    return y.to(x.dtype)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    high = mean.to(dtype)
    low = (mean - high.to(mean.dtype)).to(dtype)
    return (x.to(dtype) - per_channel(high, x)) - per_channel(low, x)


def backward_reduce(g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of g and of g * xhat per group and channel, `(groups, C)`, with xhat = (x - mean) * invstd."""
    wide = wide_dtype(x.device)
    sizes = group_sizes(x.shape[0], mean.shape[0])
    sums = []
    rows = zip(torch.split(g, sizes), torch.split(x, sizes), mean, strict=True)
    for g_part, x_part, mean_row in rows:
        g_part = g_part.to(compute_dtype(x))
        g_x = _channel_sum(g_part * _centred(x_part, mean_row), wide)
        sums.append((_channel_sum(g_part, wide), g_x))
    sum_g = torch.stack([s for s, _ in sums])
    return sum_g, torch.stack([s for _, s in sums]) * invstd.to(wide)


def backward_apply(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`scale * (g - u - v * (x - centre))` per group and channel: the gradient of every method."""
    dtype = compute_dtype(x)
    sizes = group_sizes(x.shape[0], centre.shape[0])
    rows = zip(torch.split(g, sizes), torch.split(x, sizes), centre, scale, u, v, strict=True)
    parts = [
        per_channel(s.to(dtype), xp)
        * (gp.to(dtype) - per_channel(ur.to(dtype), xp) - per_channel(vr.to(dtype), xp) * _centred(xp, c))
        for gp, xp, c, s, ur, vr in rows
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(x.dtype)
