"""Inputs as they are compared: quantiles by channel, means by position, power by frequency, each worked out once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEVELS = torch.linspace(0.05, 0.95, 31, dtype=torch.float64)
VALUES = 8192  # of a channel
SIDE = 16  # positions an axis
BANDS = 16  # of frequency, from 0 to half a cycle a position
SECTORS = 4  # of direction
BLOCK = 8  # positions, of JPEG


@dataclass
class View:
    """Inputs `(N, C, *)`, or `(N, columns)`."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @property
    def spatial(self) -> bool:
        """Whether there are positions."""
        return self.x.dim() > 2

    @cached_property
    def quantiles(self) -> Tensor:
        """`(C, levels)`, of each channel or column."""
        flat = self.x.transpose(0, 1).flatten(2) if self.spatial else self.x.T[:, :, None]
        size = flat.shape[1] * flat.shape[2]
        if size > VALUES:
            pick = torch.randint(size, (VALUES,), generator=torch.Generator().manual_seed(0))
            flat = flat[:, pick // flat.shape[2], pick % flat.shape[2]]
        return torch.quantile(flat.flatten(1).double(), LEVELS, dim=1).T

    @cached_property
    def spread(self) -> Tensor:
        """Per channel the deviation of the quantiles, which outliers do not move; of the values where that is 0."""
        wide = self.quantiles.std(1)
        return wide if bool((wide > 0).all()) else torch.where(wide > 0, wide, self._deviation)

    @property
    def _deviation(self) -> Tensor:
        return self.x.transpose(0, 1).flatten(1).double().std(1)

    @cached_property
    def grid(self) -> Tensor:
        """`(N, C x positions)` at a grid of positions."""
        x = self.x
        for axis in range(2, x.dim()):
            size = x.shape[axis]
            if size > SIDE:
                x = x.index_select(axis, torch.linspace(0, size - 1, SIDE).round().long())
        return x.flatten(1)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The mean and variance over samples at each place of the grid."""
        var, mean = torch.var_mean(self.grid, 0)
        return mean.double(), var.double()

    @cached_property
    def spectrum(self) -> Tensor:
        """`(N, frequencies)`: the mean power over channels; white noise has its variance in each."""
        axes = tuple(range(2, self.x.dim()))
        x = self.x - self.x.mean(axes, keepdim=True)
        for axis in axes:
            # Without a window the step from one end to the other fills all frequencies.
            window = torch.hann_window(x.shape[axis] + 2, periodic=False)[1:-1]
            x = x * (window / window.square().mean().sqrt()).view([-1] + [1] * (x.dim() - axis - 1))
        return torch.fft.fftn(x, dim=axes, norm="ortho").abs().square().mean(1).flatten(1).double()

    @cached_property
    def power(self) -> Tensor:
        """`(N, bands)`: the mean power of a band."""
        return self._mean_of(bands(self.x.shape[2:]), BANDS)

    @cached_property
    def sectors(self) -> Tensor:
        """`(N, 4)`: the mean power by direction, of frequencies across, along one diagonal, down, along the other."""
        return self._mean_of(sectors(self.x.shape[2:]), SECTORS)

    @cached_property
    def cells(self) -> Tensor:
        """`(bands x directions)`: the mean power in each, over samples; 0 where there is no frequency."""
        band, sector = bands(self.x.shape[2:]), sectors(self.x.shape[2:])
        return self._mean_of(torch.where(band >= 0, band * SECTORS + sector, -1), BANDS * SECTORS).mean(0)

    def _mean_of(self, group: Tensor, groups: int) -> Tensor:
        used = group >= 0
        total = torch.zeros(len(self.x), groups, dtype=torch.float64)
        total.index_add_(1, group[used], self.spectrum[:, used])
        return total / torch.bincount(group[used], minlength=groups).clamp_min(1)

    @cached_property
    def blocks(self) -> float:
        """How much larger steps between blocks of BLOCK positions are than those at any other place in them, in log."""
        found = []
        for axis in (2, 3):
            step = self.x.diff(dim=axis).abs().transpose(axis, 3).flatten(0, 2).double().mean(0)
            places = torch.stack([step[k::BLOCK].mean() for k in range(BLOCK)]).clamp_min(1e-12).log()
            found.append(float(places[-1] - places[:-1].max()))
        return min(found)


def bands(shape: torch.Size) -> Tensor:
    """The band of each frequency, -1 for the mean."""
    radius = torch.stack(_grids(shape)).square().sum(0).sqrt().flatten()
    return torch.where(radius > 0, (radius * 2 * BANDS).long().clamp_max(BANDS - 1), -1)


def sectors(shape: torch.Size) -> Tensor:
    """The direction of each frequency of an image, in eighths of a turn, -1 for the mean."""
    down, across = (v.flatten() for v in _grids(shape))
    sector = (torch.atan2(down, across) * 4 / torch.pi).round().long() % SECTORS
    return torch.where((down != 0) | (across != 0), sector, -1)


def _grids(shape: torch.Size) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in shape), indexing="ij")
