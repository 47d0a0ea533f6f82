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


@dataclass(frozen=True)
class Entry:
    """dtype, shape, stride and the bytes `[start, stop)` of the file that its storage takes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    stride: int = 1

    def read(self, data: mmap.mmap, limit: int = MOST_CHANNELS) -> Tensor | None:
        """The values in float64, at most limit of them from the front; None if the file is too short for them."""
        count = min(prod(self.shape), limit)
        size = self.dtype.itemsize
        step = self.stride if len(self.shape) == 1 else 1
        if count == 0:
            return torch.zeros(0, dtype=torch.float64)
        last = self.start + ((count - 1) * step + 1) * size
        if step < 1 or self.start < 0 or last > min(self.stop, len(data)):
            return None
        raw = bytearray(data[self.start : last])
        return torch.frombuffer(raw, dtype=self.dtype)[::step].double()


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's bytes, read where they are touched."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise BatchNormError(f"path must be a checkpoint; {path.name} is empty") from error
        with data:
            yield data
