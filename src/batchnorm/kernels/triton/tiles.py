"""What a program of a kernel works on: tiles of one group and channel, or of one group and a block of channels.

A tensor is `(N, C, S)` in memory, or `(N * S, C)` with channels innermost (`LAST`). A tile has outer indices (samples,
or rows) and lanes that lie side by side (positions, or channels). Vectors of channels are tiles of `[1, 1]`, or
`[1, lanes]`, so one spelling of every pass serves both layouts.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def finite(x):
    """Neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def times(weight, x):
    """The product, where a weight of 0 leaves x out, be it NaN or infinite."""
    return tl.where(weight == 0, 0.0, weight * x)


@triton.jit
def over(x, LAST: tl.constexpr):
    """The sum over what is one channel's: all of a tile, or its rows."""
    total = tl.sum(x, 0, keep_dims=True)
    if not LAST:
        total = tl.sum(total, 1, keep_dims=True)
    return total


@triton.jit
def place(N, C, S, groups, blocks, LAST: tl.constexpr, WIDE: tl.constexpr):
    """The chunk, group and channel (or block of them) of this program; where its group begins, and how long it is."""
    pid = tl.program_id(0)
    block = pid % blocks
    group = pid // blocks % groups
    chunk = pid // blocks // groups
    small, extra = N // groups, N % groups
    start = group * small + tl.minimum(group, extra)
    size = small + (group < extra).to(tl.int32)
    if WIDE:
        start, size, block = start.to(tl.int64), size.to(tl.int64), block.to(tl.int64)
    if LAST:
        start, size = start * S, size * S
    return chunk, group, block, start, size


@triton.jit
def tiles_of(size, S, LAST: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """How many tiles a group has, along one channel or block of channels, and how many side by side."""
    across = 1
    if not LAST:
        across = (S + BL - 1) // BL
    return (size + BR - 1) // BR * across, across


@triton.jit
def channels_of(block, C, LAST: tl.constexpr, BL: tl.constexpr):
    """The channels of a program's vectors, and which of them there are."""
    if LAST:  # noqa: SIM108  of two shapes
        channel = (block * BL + tl.arange(0, BL))[None, :]
    else:
        channel = block + tl.zeros([1, 1], tl.int32)
    return channel, channel < C


@triton.jit
def tile(t, across, block, start, size, C, S, LAST: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr):
    """Where the values of a tile lie, which of them there are, and the same of sample weights."""
    r = t // across * BR + tl.arange(0, BR)
    row = (start + r)[:, None]
    lane = tl.arange(0, BL)
    if LAST:
        lane = (block * BL + lane)[None, :]
        inside = (r < size)[:, None] & (lane < C)
        return row * C + lane, inside, row, (r < size)[:, None]
    else:
        lane = (t % across * BL + lane)[None, :]
        inside = (r < size)[:, None] & (lane < S)
        return row * (C * S) + block * S + lane, inside, row * S + lane, inside


@triton.jit
def split(vector, ACC: tl.constexpr):
    """A vector in the precision of the data, and what that leaves; an infinity leaves nothing."""
    high = vector.to(ACC)
    low = vector - high.to(tl.float64)
    return high, tl.where(finite(low), low, 0.0).to(ACC)


@triton.jit
def weighed(w_ptr, at, present, inside, ACC: tl.constexpr):
    """The weight of each value of a tile, 0 outside of it."""
    if w_ptr is None:
        return inside.to(ACC)
    else:
        w = tl.load(w_ptr + at, mask=present, other=0).to(ACC)
        return tl.where(inside, w, 0.0)
