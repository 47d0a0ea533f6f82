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
def read(ptr, at, inside, ACC: tl.constexpr):
    """What lies there, in the precision of the arithmetic; 0 outside."""
    return tl.load(ptr + at, mask=inside, other=0).to(ACC)


@triton.jit
def write(ptr, at, value, inside):
    """Store in the precision of what is there."""
    if ptr.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # bfloat16 is made of that
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def place(
    pid, N, C, S, groups, blocks, span, LAST: tl.constexpr, WIDE: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr
):
    """What a program (None: this one) works on, a chunk of one group and of a block of channels, or of one.

    The block, where its group begins, how long it is, how many tiles lie side by side; the chunk's tiles, from first
    to before last; chunk and group; the channels of vectors, and which of them there are.
    """
    if pid is None:
        pid = tl.program_id(0)
    block, group, chunk = pid % blocks, pid // blocks % groups, pid // blocks // groups
    small, extra = N // groups, N % groups
    start = group * small + tl.minimum(group, extra)
    size = small + (group < extra).to(tl.int32)
    if LAST:  # noqa: SIM108  of two shapes
        channel = (block * BL + tl.arange(0, BL))[None, :]
    else:
        channel = block + tl.zeros([1, 1], tl.int32)
    if WIDE:
        start, size, block = start.to(tl.int64), size.to(tl.int64), block.to(tl.int64)
    across = 1
    if LAST:
        start, size = start * S, size * S
    else:
        across = (S + BL - 1) // BL
    tiles = (size + BR - 1) // BR * across
    first, last = chunk * span, tl.minimum((chunk + 1) * span, tiles)
    return block, start, size, across, first, last, chunk, group, channel, channel < C


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
def rows_at(mean_ptr, scale_ptr, shift_ptr, at, there, ACC: tl.constexpr):
    """A mean, split, and the scale and shift, where there are any."""
    high, low = split(read(mean_ptr, at, there, tl.float64), ACC)
    scale, shift = high, low
    if scale_ptr is not None:
        scale, shift = read(scale_ptr, at, there, ACC), read(shift_ptr, at, there, ACC)
    return high, low, scale, shift


@triton.jit
def weighed(w_ptr, at, present, inside, ACC: tl.constexpr):
    """The weight of each value of a tile, 0 outside of it."""
    if w_ptr is None:
        return inside.to(ACC)
    else:
        return tl.where(inside, read(w_ptr, at, present, ACC), 0.0)
