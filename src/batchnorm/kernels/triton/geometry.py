"""How the work on a tensor is cut into tiles, chunks of them and programs: by the shape alone, so that bits repeat."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sizes(NamedTuple):
    """Values and channels of a tile, tiles that a program writes, programs that keep a device busy, chunks to merge.

    And channels and chunks that a program of the arithmetic on channel vectors holds at once; the tiles of a channel,
    or block of channels, up to which one program does all that there is to do with it, in one launch; and how many
    values offsets in int32 reach.
    """

    tile: int = 1024
    lanes: int = 64
    written: int = 4
    programs: int = 1024
    chunks: int = 512
    held: int = 1024
    alone: int = 8
    narrow: int = 2**31


SIZES = Sizes()


class Cut(NamedTuple):
    """Sizes `(N, C, S)`, how many blocks of channels, chunks and tiles there are, and the constants of the kernels."""

    n: int
    c: int
    s: int
    groups: int
    blocks: int
    chunks: int
    span: int
    # Programs a group and block, and tiles a program, of a pass that writes.
    writers: int
    written: int
    alone: bool
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
        """The grid of a pass that writes."""
        return (self.writers * self.groups * self.blocks,)

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
    return _cut(n, c, math.prod(rest), last, groups, x.dtype is torch.float64, SIZES)


@lru_cache(maxsize=4096)
def _cut(n: int, c: int, s: int, last: bool, groups: int, wide: bool, sizes: Sizes) -> Cut:
    largest = _over(n, groups)
    outer, lanes = (largest * s, c) if last else (largest, s)
    bl = min(_power(lanes), sizes.lanes if last else sizes.tile)
    br = min(_power(outer), max(1, sizes.tile // bl))
    blocks, across = (_over(c, bl), 1) if last else (c, _over(s, bl))
    tiles = _over(outer, br) * across
    alone = groups * tiles <= sizes.alone
    most = 1 if alone else max(1, min(_over(sizes.programs, groups * blocks), sizes.chunks))
    chunks = min(most, _over(tiles, sizes.written))
    span = _over(tiles, chunks)
    chunks = _over(tiles, span)
    bk, bc = _power(chunks), bl if last else 1
    if not alone:
        bc = min(_power(c), max(1, sizes.held // bk), sizes.lanes)
    constants = {"LAST": last, "WIDE": n * c * s >= sizes.narrow - sizes.tile, "BR": br, "BL": bl, "WIDER": wide}
    writers = _over(tiles, sizes.written)
    return Cut(n, c, s, groups, blocks, chunks, span, writers, sizes.written, alone, constants, bk, bc)
