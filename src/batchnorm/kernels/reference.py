"""The four passes in plain torch operations: the reference, and what transforms trace.

Everything here is differentiable, so the reference forward under autograd is the second spelling
against which every hand-written backward is tested. Data are `(N, C, *)`, split evenly into groups
of samples; channel vectors are `(groups, C)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels.shapes import RawMoments, compute_dtype, group_blocks, or_one, wide_dtype


class _Run(NamedTuple):
    """A run of equal groups: where its rows of channel vectors are, and a view `(groups, n, C, *)` of a tensor."""

    rows: slice
    groups: int
    samples: slice

    def view(self, x: Tensor) -> Tensor:
        if self.samples == slice(None):
            return x[None]
        part = x[self.samples]
        return part.reshape(self.groups, part.shape[0] // self.groups, *x.shape[1:])

    def vector(self, vector: Tensor, x: Tensor) -> Tensor:
        """This run's rows of a `(groups, C)` vector, to broadcast over `view(x)`."""
        return vector[self.rows].reshape(self.groups, 1, -1, *[1] * (x.dim() - 2))


def _runs(n: int, groups: int) -> Iterator[_Run]:
    if groups == 1:
        # No sizes, so that a trace is as good for another number of samples.
        yield _Run(slice(0, 1), 1, slice(None))
        return
    sample, row = 0, 0
    for size, count in group_blocks(int(n), int(groups)):
        yield _Run(slice(row, row + count), count, slice(sample, sample + size))
        sample, row = sample + size, row + count


def _each(x: Tensor, weight: Tensor | None, groups: int) -> Iterator[tuple[_Run, Tensor, Any, Tensor | None]]:
    """The runs: each with its view of x, 0 where weight is, with its view of weight, and with which values count."""
    if weight is not None:
        weight = weight.expand(x.shape[0], 1, *x.shape[2:])
    for run in _runs(len(x), groups):
        w = None if weight is None else run.view(weight)
        chosen = None if w is None else w != 0
        yield run, _select(run.view(x), chosen), w, chosen


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    flat = [part.reshape(-1, *like.shape[1:]) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def reduce(x: Tensor, weight: Tensor | None = None, groups: int = 1, centred: bool = True) -> RawMoments:
    """The moments of `(N, C, *)` per group and channel; about zero, with mean 0, where centred is False.

    weight broadcasts against x with channel size 1: a boolean mask (True is data) or sample
    weights. Values of weight zero are selected away before any arithmetic, so a NaN in padding
    stays in the padding.
    """
    run_of = _reduce_run if centred else _reduce_run_about_zero
    parts = [run_of(part, w, chosen) for _, part, w, chosen in _each(x, weight, groups)]
    return RawMoments(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _reduce_run(x: Tensor, weight: Tensor | None, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = wide_dtype(x.device)
    x = x.to(compute_dtype(x))
    n, n_squared = _counts(x, weight, wide)
    if weight is None:
        # Any sample of a channel lies within sqrt(n) standard deviations of its mean, so it is a
        # shift that removes a large mean before anything is summed, at no extra pass.
        shift = _first_value(x)
    else:
        weight = weight.to(x.dtype)
        # As the first value's, a shift that is not finite would make the mean with an infinity NaN.
        shift = (_channel_sum(weight * x, wide) / or_one(n)).detach().to(x.dtype).nan_to_num(0.0, 0.0, 0.0)
    centred = _select(x - _over(shift, x), chosen)
    divisor = or_one(n)
    first = _weighted_sum(centred, weight, wide) / divisor
    # Corrected two-pass: the rounding of the first mean is taken out again by the sum of deviations.
    rounded = first.detach().to(x.dtype)
    deviation = _select(centred - _over(rounded, x), chosen)
    rest = _weighted_sum(deviation, weight, wide)
    m2 = _weighted_sum(deviation.square(), weight, wide) - rest * rest / divisor
    mean = shift.to(wide) + rounded.to(wide) + rest / divisor
    # As torch: the mean of a channel with an infinity is infinite, and its variance NaN.
    return n, n_squared, torch.where(torch.isfinite(first), mean, shift.to(wide) + first), m2.clamp_min(0)


def _reduce_run_about_zero(x: Tensor, weight: Tensor | None, _: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = wide_dtype(x.device)
    x = x.to(compute_dtype(x))
    n, n_squared = _counts(x, weight, wide)
    m2 = _weighted_sum(x.square(), None if weight is None else weight.to(x.dtype), wide)
    return n, n_squared, torch.zeros_like(m2), m2


def _counts(x: Tensor, weight: Tensor | None, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sums of weights and of their squares."""
    groups, channels = x.shape[0], x.shape[2]
    if weight is None:
        values = x.numel() // max(groups * channels, 1)
        n = torch.full((), values, dtype=wide, device=x.device).expand(groups, channels)
        return n, n
    n, n_squared = (_channel_sum(w, wide).expand(groups, channels) for w in (weight.to(wide), weight.to(wide).square()))
    return n, n_squared


def _over(vector: Tensor, x: Tensor) -> Tensor:
    """View `(groups, C)` to broadcast over `(groups, n, C, *)`."""
    return vector.reshape(x.shape[0], 1, -1, *[1] * (x.dim() - 3))


def _select(x: Tensor, selected: Tensor | None) -> Tensor:
    return x if selected is None else torch.where(selected, x, x.new_zeros(()))


def _first_value(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], x.shape[2])
    return x.detach()[:, 0].reshape(x.shape[0], x.shape[2], -1)[..., 0].nan_to_num(posinf=0.0, neginf=0.0)


def _weighted_sum(x: Tensor, weight: Tensor | None, wide: torch.dtype) -> Tensor:
    return _channel_sum(x if weight is None else x * weight, wide)


def _channel_sum(x: Tensor, wide: torch.dtype) -> Tensor:
    """Sum within a sample in the compute dtype (pairwise inside torch), over a group's samples in the wide one."""
    inner = x.sum(tuple(range(3, x.dim()))) if x.dim() > 3 else x
    return inner.sum(1, dtype=wide)


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """`(x - mean) * scale + shift` per group and channel, the mean taken off as a high and a low part.

    Zero where weight is zero, whatever x holds there.
    """
    dtype, parts = compute_dtype(x), []
    for run, part, _, chosen in _each(x, weight, mean.shape[0]):
        y = _centred(part, run.vector(mean, x)) * run.vector(scale, x).to(dtype) + run.vector(shift, x).to(dtype)
        parts.append(_select(y, chosen))
    return _joined(parts, x).to(x.dtype)


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    dtype = compute_dtype(x)
    high = mean.to(dtype)
    low = (mean - high.to(mean.dtype)).to(dtype)
    return (x.to(dtype) - high) - low


def backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of g and of g * xhat per group and channel, `(groups, C)`, with xhat = (x - mean) * invstd.

    Each output counts once, however much its sample weighs; where weight is zero there is no output.
    """
    wide, sums = wide_dtype(x.device), []
    for run, part, _, chosen in _each(x, weight, mean.shape[0]):
        g_run = _select(run.view(g).to(compute_dtype(x)), chosen)
        centred = _centred(part, run.vector(mean, x))
        sums.append((_channel_sum(g_run, wide), _channel_sum(g_run * centred, wide)))
    sum_g, sum_gx = (torch.cat(column) for column in zip(*sums, strict=True))
    return sum_g, sum_gx * invstd.to(wide)


def backward_apply(
    g: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    u: Tensor,
    v: Tensor,
    weight: Tensor | None = None,
    may_leave_out: bool = False,
) -> Tensor:
    """`scale * g - w * (u + v * (x - centre))` per group and channel: the gradient of every method.

    w is the sample's weight (1 without weights): what reaches x through the statistics is
    proportional to it. Zero where it is zero. With may_leave_out a v of 0 leaves x out, be it NaN or infinite;
    statistics made of the batch are not finite then, and need not ask.
    """
    dtype, parts = compute_dtype(x), []
    for run, part, w, chosen in _each(x, weight, centre.shape[0]):
        centred = _centred(part, run.vector(centre, x))
        factor = run.vector(v, x).to(dtype)
        if may_leave_out:
            centred = torch.where(factor == 0, factor, centred)
        through = run.vector(u, x).to(dtype) + factor * centred
        if w is not None:
            through = through * w.to(dtype)
        direct = run.vector(scale, x).to(dtype) * _select(run.view(g).to(dtype), chosen)
        parts.append(_select(direct - through, chosen))
    return _joined(parts, x).to(x.dtype)
