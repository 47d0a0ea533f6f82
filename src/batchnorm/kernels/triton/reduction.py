"""The moments: shifted sums in each lane of a tile, merged over lanes and then over chunks, always in one order."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.tiles import finite, over, place, read, tile, weighed


@triton.jit
def put(ptr, row, inside, n, n2, mean, m2):
    """Store count, squared count, mean and m2, the first of so many rows."""
    tl.store(ptr, n, mask=inside)
    tl.store(ptr + row, n2, mask=inside)
    tl.store(ptr + 2 * row, mean, mask=inside)
    tl.store(ptr + 3 * row, m2, mask=inside)


@triton.jit
def taken(ptr, row, inside):
    """What `put` stored."""
    n, n2 = read(ptr, 0, inside, tl.float64), read(ptr, row, inside, tl.float64)
    return n, n2, read(ptr, 2 * row, inside, tl.float64), read(ptr, 3 * row, inside, tl.float64)


@triton.jit(do_not_specialize=["N", "groups", "blocks", "chunks", "span"])
def reduce_kernel(
    x_ptr, w_ptr, part_ptr, N, C, S, groups, blocks, chunks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    CENTRED: tl.constexpr, pid=None,
):  # fmt: skip
    """Count, squared count, mean and m2 of each chunk, `(4, groups, chunks, C)` in float64."""
    block, start, size, across, first, last, chunk, group, channel, there = place(
        pid, N, C, S, groups, blocks, span, LAST, WIDE, BR, BL
    )
    n, n2 = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    s1, s2, shift = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    if CENTRED and w_ptr is None:
        # A lane's first value is within sqrt(n) standard deviations of its mean; later ones take the tile's mean.
        at, inside, _, _ = tile(first, across, block, start, size, C, S, LAST, BR, BL)
        x = read(x_ptr, at, inside, ACC)
        good = inside & finite(x)
        middle = over(tl.where(good, x, 0.0), LAST) / tl.maximum(over(good.to(ACC), LAST), 1.0)
        shift = tl.where(good, x, tl.where(finite(middle), middle, 0.0))
    for t in range(first, last):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        x = read(x_ptr, at, inside, ACC)
        w = weighed(w_ptr, beside, present, inside, ACC)
        if CENTRED and w_ptr is not None:
            shift = tl.where((w != 0) & (n == 0) & finite(x), x, shift)
        d = tl.where(w != 0, x - shift, 0.0)
        s1 += w * d
        s2 += w * d * d
        n += w
        if w_ptr is not None:
            n2 += w * w
    # Over lanes in float64: their means would cancel.
    count = n.to(tl.float64)
    safe = tl.where(n > 0, n, 1.0)
    if CENTRED:
        d = s1 / safe
        m2 = s2 - s1 * d
        m2 = tl.where(m2 < 0, 0.0, m2).to(tl.float64)
        mean = shift.to(tl.float64) + d.to(tl.float64)
        total = over(count, LAST)
        middle = over(tl.where(count > 0, count * mean, 0.0), LAST) / tl.where(total > 0, total, 1.0)
        far = mean - middle
        m2 = over(tl.where(count > 0, m2 + count * far * far, 0.0), LAST)
    else:
        total = over(count, LAST)
        m2 = over(s2.to(tl.float64), LAST)
        middle = tl.zeros_like(m2)
    squares = total
    if w_ptr is not None:
        squares = over(n2.to(tl.float64), LAST)
    row = tl.cast(groups, tl.int64) * chunks * C
    put(part_ptr + (group * chunks + chunk) * C + channel, row, there, total, squares, middle, m2)


@triton.jit
def merged(part_ptr, group, groups, chunks, c, C, CENTRED: tl.constexpr, BK: tl.constexpr):
    """The moments of one group from those of its chunks (Chan, Golub and LeVeque 1979)."""
    k = tl.arange(0, BK)
    at = part_ptr + (group * chunks + k)[:, None] * C + c[None, :]
    there = (k < chunks)[:, None] & (c < C)[None, :]
    n, n2, mean, m2 = taken(at, tl.cast(groups, tl.int64) * chunks * C, there)
    total, squares = tl.sum(n, 0), tl.sum(n2, 0)
    if CENTRED:
        middle = tl.sum(tl.where(n > 0, n * mean, 0.0), 0) / tl.where(total > 0, total, 1.0)
        far = mean - middle[None, :]
        spread = tl.sum(tl.where(n > 0, m2 + n * far * far, 0.0), 0)
        # The mean with an infinity is infinite; such a channel has no variance.
        spread = tl.where(finite(middle), spread, float("nan"))
        return total, squares, middle, spread
    else:
        return total, squares, tl.zeros_like(total), tl.sum(m2, 0)


@triton.jit(do_not_specialize=["groups", "chunks"])
def moments_kernel(part_ptr, rows_ptr, groups, chunks, C, CENTRED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    """The rows count, squared count, mean and m2, `(4, groups, C)`."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    for group in range(groups):
        n, n2, mean, m2 = merged(part_ptr, group, groups, chunks, c, C, CENTRED, BK)
        put(rows_ptr + group * C + c, groups * C, c < C, n, n2, mean, m2)
