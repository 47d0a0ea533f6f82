"""How the work on a tensor is cut into tiles, chunks of them and programs: by the shape alone, so that bits repeat."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Values of a tile; tiles that a program writes; programs that are enough to keep a device busy; chunks one merge takes.
_TILE, SPAN, _PROGRAMS, _CHUNKS = 1024, 4, 1024, 512
# Channels and chunks that a program of the arithmetic on channel vectors holds at once.
_HELD = 1024


class Cut(NamedTuple):
    """Sizes `(N, C, S)`, how many blocks of channels, chunks and tiles there are, and the constants of the kernels."""

    n: int
    c: int
    s: int
    groups: int
    blocks: int
    chunks: int
    span: int
    written: int
    constants: dict[str, Any]
    bk: int
    bc: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """What every kernel over data is told first."""
        return self.n, self.c, self.s, self.groups, self.blocks

    @property
    def reducing(self) -> tuple[int]:
        """The grid of a reduction."""
        return (self.chunks * self.groups * self.blocks,)

    @property
    def writing(self) -> tuple[int]:
        """The grid of a pass that writes, so many tiles a program."""
        return (self.written * self.groups * self.blocks,)

    @property
    def channels(self) -> tuple[int]:
        """The grid over channel vectors."""
        return (_over(self.c, self.bc),)


def _over(n: int, size: int) -> int:
    return -(-n // size)


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def cut(x: Tensor, last: bool, groups: int) -> Cut:
    """The cut of a dense tensor."""
    n, c, *rest = x.shape
    return _cut(n, c, math.prod(rest), last, groups, x.dtype is torch.float64)


@lru_cache(maxsize=4096)
def _cut(n: int, c: int, s: int, last: bool, groups: int, wide: bool) -> Cut:
    largest = _over(n, groups)
    outer, lanes = (largest * s, c) if last else (largest, s)
    bl = min(_power(lanes), 64 if last else _TILE)
    br = min(_power(outer), _TILE // bl)
    blocks, across = (_over(c, bl), 1) if last else (c, _over(s, bl))
    tiles = _over(outer, br) * across
    chunks = max(1, min(_over(_PROGRAMS, groups * blocks), _over(tiles, SPAN), _CHUNKS))
    span = _over(tiles, chunks)
    chunks = _over(tiles, span)
    bk = _power(chunks)
    bc = min(_power(c), max(1, _HELD // bk), 64)
    constants = {"LAST": last, "WIDE": n * c * s >= 2**31 - _TILE, "BR": br, "BL": bl, "WIDER": wide}
    return Cut(n, c, s, groups, blocks, chunks, span, _over(tiles, SPAN), constants, bk, bc)
