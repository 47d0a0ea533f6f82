"""A tensor in a file: where it lies, not what it holds, until it is asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError

MOST_CHANNELS = 2**20  # of one layer; a longer vector is not read
LARGEST_EXPANSION = 64  # times the size of the file: of a tensor whose strides repeat values


@dataclass(frozen=True)
class Entry:
    """dtype, shape, strides (None: contiguous) and the bytes `[start, stop)` of the file that its storage takes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    strides: tuple[int, ...] | None = None

    def read(self, data: mmap.mmap, limit: int = MOST_CHANNELS) -> Tensor | None:
        """The values in float64, at most limit of them from the front; None if the file is too short for them."""
        count = min(prod(self.shape), limit)
        if count == 0:
            return torch.zeros(0, dtype=torch.float64)
        vector = len(self.shape) == 1 and self.shape[0] > 1 and self.strides is not None
        return self._values(data, count, self.strides[0] if vector and self.strides is not None else 1)

    def _values(self, data: mmap.mmap, count: int, step: int) -> Tensor | None:
        size = self.dtype.itemsize
        last = self.start + ((count - 1) * step + 1) * size
        if step < 1 or self.start < 0 or last > min(self.stop, len(data)):
            return None
        return torch.frombuffer(bytearray(data[self.start : last]), dtype=self.dtype)[::step].double()

    def tensor(self, data: mmap.mmap) -> Tensor:
        """All of the tensor, a copy in its own dtype."""
        if 0 in self.shape:
            return torch.zeros(self.shape, dtype=self.dtype)
        extent = sum((n - 1) * s for n, s in zip(self.shape, self._strides(), strict=True)) + 1
        if prod(self.shape) * self.dtype.itemsize > LARGEST_EXPANSION * len(data):
            raise ValueError(f"a tensor of shape {list(self.shape)[:4]} repeats few values too often")
        raw = bytearray(data[self.start : self.start + extent * self.dtype.itemsize])
        return torch.frombuffer(raw, dtype=self.dtype).as_strided(self.shape, self._strides()).contiguous()

    def _strides(self) -> tuple[int, ...]:
        return self.strides or tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


@contextmanager
def mapped(path: Path, name: str = "path") -> Iterator[mmap.mmap]:
    """A file's bytes, read where they are touched."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise BatchNormError(f"{name} must be a checkpoint; {path.name} is empty") from error
        except OSError as error:
            raise BatchNormError(f"{name} must be a checkpoint; {path} cannot be mapped: {error.strerror}") from error
        with data:
            yield data
