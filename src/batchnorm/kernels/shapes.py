"""What the passes exchange: raw moments, and the widths of the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class RawMoments:
    """What `reduce` returns, one row per group: `(groups, C)`, in the wide dtype.

    count is the number of values (or the sum of their weights), count_squared the sum of squared
    weights (equal to count for unweighted data), m2 the sum of squared deviations from mean.
    """

    count: Tensor
    count_squared: Tensor
    mean: Tensor
    m2: Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of channel vectors: float64 wherever the device has one."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of arithmetic over whole tensors: float32, or float64 for float64 data."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def or_one(count: Tensor) -> Tensor:
    """A count that can be divided by."""
    return torch.where(count > 0, count, 1.0)


def beside(v: Tensor | None, statistics: Tensor) -> Tensor | None:
    """A weight or bias as torch's CPU kernels take it beside statistics: not narrower than they are."""
    return v if v is None or v.dtype not in NARROW else v.to(statistics.dtype)


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """View a `(C,)` vector so that it broadcasts over `(N, C, *)`."""
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))


def group_blocks(n: int, groups: int) -> list[tuple[int, int]]:
    """(samples, groups) of each run of equal groups when n samples are split evenly, larger ones first.

    Group sizes differ by at most one sample, so there are at most two runs: whole runs, not single
    groups, are what the passes work on.
    """
    small, extra = divmod(n, groups)
    runs = [((small + 1) * extra, extra), (small * (groups - extra), groups - extra)]
    return [run for run in runs if run[1]]
