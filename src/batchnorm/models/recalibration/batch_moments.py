"""The moments of what one layer receives in one call, at about the price of reading it once or twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.kernels.shapes import per_channel

# Above this ratio of mean^2 to variance the sum of squares loses more digits than float32 rounding.
_LARGEST_OFFSET = 4.0
# And above this one the native sums along rows do.
_FAR = 1e6


@dataclass(frozen=True)
class Part:
    """Count, mean and sum of squared deviations of some values, per channel; count is a number."""

    count: float
    mean: Tensor
    m2: Tensor

    def merge(self, other: Part) -> Part:
        """Both together (Chan's formula)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / count)
        return Part(count, mean, m2)

    def apart(self, other: Part) -> float:
        """Root mean square over channels of the distance of means and standard deviations, in standard deviations."""
        scale = self.var.sqrt().clamp_min(1e-30)
        gaps = ((self.mean - other.mean) / scale).square() + (other.var.sqrt() / scale - 1).square()
        return float(torch.where(self.var > 0, gaps, 0.0).mean().sqrt())

    @property
    def var(self) -> Tensor:
        """The biased variance, which normalises."""
        return self.m2 / self.count


def part_of(x: Tensor, weight: Tensor | None) -> Part:
    """The moments of `(N, C, *)`, in float64 where the device has it."""
    passes = kernels.select(x)
    plain = weight is None and x.layout == torch.strided and x.numel() > 0
    on_cpu = plain and x.device.type == "cpu"
    # An (N, C) is small enough to be summed in float64 here; the native row tiles are of float32 rows.
    if on_cpu and (x.dim() == 2 or passes.name == "reference"):
        return _plain(x)
    raw = passes.reduce(x, weight, 1)
    # Of weights alone is it read from the device, which waits.
    count = x.numel() / max(x.shape[1], 1) if weight is None else float(raw.count[0, 0])
    mean, m2 = raw.mean[0], raw.m2[0]
    rows = on_cpu and x.dtype != torch.float64 and not x.is_contiguous()
    if rows and bool((mean.square() * count > _FAR * m2).any()):
        # The deviations lie on so coarse a grid that float32 sums of their squares round downwards.
        return _plain(x)
    return Part(count, mean, m2)


def _plain(x: Tensor) -> Part:
    """Sums within a sample in float32 (pairwise inside torch), over samples in float64.

    The reference shifts by a value of the data first, which writes a copy of x. That is only
    needed where the mean is large against the standard deviation.
    """
    count = x.numel() // x.shape[1]
    if x.dim() == 2 or x.dtype == torch.float64:
        wide = x.double()
        others = (0, *range(2, x.dim()))
        mean = wide.mean(others)
        centred = wide - per_channel(mean, x)
        return Part(count, mean, centred.square().sum(others))
    mean, square = _sums(x)
    mean = mean / count
    offset = mean.square()
    var = square / count - offset
    if bool((offset > _LARGEST_OFFSET * var).any()):
        # Rounded, so that taking it off is exact in x's own grid and the rest is small.
        shift = mean.to(torch.float32)
        rest, square = _sums(x.float() - per_channel(shift, x), copies=True)
        rest = rest / count
        mean, var = shift.double() + rest, square / count - rest.square()
    return Part(count, mean, var.clamp_min(0) * count)


def _sums(x: Tensor, copies: bool = False) -> tuple[Tensor, Tensor]:
    """Per channel the sum of x and of its square; copies says that x is a copy already, to be squared in place."""
    inner = tuple(range(2, x.dim()))
    first = x.sum(inner, dtype=torch.float32).sum(0, dtype=torch.float64)
    if x.is_contiguous() and not copies:
        # The norm reads x without writing its square; along strided axes it is slow.
        norms = torch.linalg.vector_norm(x, dim=inner, dtype=torch.float32)
        return first, torch.linalg.vector_norm(norms, dim=0, dtype=torch.float64).square()
    second = x.square_() if copies else x.float().square()
    return first, second.sum(inner).sum(0, dtype=torch.float64)


def sample_summaries(x: Tensor) -> Tensor:
    """Per sample and channel the mean of at most 16 positions spread over it: `(N, C)`, for comparing samples."""
    if x.dim() > 2:
        grid = tuple(slice(None, None, -(-size // 4)) for size in x.shape[2:])
        x = x[(slice(None), slice(None), *grid)].flatten(2).double().mean(2)
    return x.double()
