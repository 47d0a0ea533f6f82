"""The moments: shifted sums in each lane of a tile, merged over lanes and then over chunks, always in one order."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.tiles import channels_of, finite, over, place, tile, tiles_of, weighed


@triton.jit
def reduce_kernel(
    x_ptr, w_ptr, part_ptr, N, C, S, groups, blocks, chunks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, CENTRED: tl.constexpr, ACC: tl.constexpr,
    BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Count, squared count, mean and m2 of each chunk, `(4, groups, chunks, C)` in float64."""
    chunk, group, block, start, size = place(N, C, S, groups, blocks, LAST, WIDE)
    tiles, across = tiles_of(size, S, LAST, BR, BL)
    first, last = chunk * span, tl.minimum((chunk + 1) * span, tiles)
    n, n2 = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    s1, s2, shift = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    if CENTRED and w_ptr is None:
        # A lane's first value is within sqrt(n) standard deviations of its mean; later ones take the tile's mean.
        at, inside, _, _ = tile(first, across, block, start, size, C, S, LAST, BR, BL)
        x = tl.load(x_ptr + at, mask=inside, other=0).to(ACC)
        good = inside & finite(x)
        middle = over(tl.where(good, x, 0.0), LAST) / tl.maximum(over(good.to(ACC), LAST), 1.0)
        shift = tl.where(good, x, tl.where(finite(middle), middle, 0.0))
    for t in range(first, last):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        x = tl.load(x_ptr + at, mask=inside, other=0).to(ACC)
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
    channel, there = channels_of(block, C, LAST, BL)
    to = part_ptr + (group * chunks + chunk) * C + channel
    row = groups * chunks * C
    tl.store(to, total, mask=there)
    tl.store(to + row, squares, mask=there)
    tl.store(to + 2 * row, middle, mask=there)
    tl.store(to + 3 * row, m2, mask=there)


@triton.jit
def merged(part_ptr, group, groups, chunks, c, C, CENTRED: tl.constexpr, BK: tl.constexpr):
    """The moments of one group from those of its chunks (Chan, Golub and LeVeque 1979)."""
    k = tl.arange(0, BK)
    at = part_ptr + (group * chunks + k)[:, None] * C + c[None, :]
    there = (k < chunks)[:, None] & (c < C)[None, :]
    row = groups * chunks * C
    n = tl.load(at, mask=there, other=0.0)
    mean = tl.load(at + 2 * row, mask=there, other=0.0)
    m2 = tl.load(at + 3 * row, mask=there, other=0.0)
    total, squares = tl.sum(n, 0), tl.sum(tl.load(at + row, mask=there, other=0.0), 0)
    if CENTRED:
        middle = tl.sum(tl.where(n > 0, n * mean, 0.0), 0) / tl.where(total > 0, total, 1.0)
        far = mean - middle[None, :]
        spread = tl.sum(tl.where(n > 0, m2 + n * far * far, 0.0), 0)
        # The mean with an infinity is infinite; such a channel has no variance.
        spread = tl.where(finite(middle), spread, float("nan"))
        return total, squares, middle, spread
    else:
        return total, squares, tl.zeros_like(total), tl.sum(m2, 0)


@triton.jit
def moments_kernel(part_ptr, rows_ptr, groups, chunks, C, CENTRED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr):
    """The rows count, squared count, mean and m2, `(4, groups, C)`."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    for group in range(groups):
        n, n2, mean, m2 = merged(part_ptr, group, groups, chunks, c, C, CENTRED, BK)
        to, row = rows_ptr + group * C + c, groups * C
        tl.store(to, n, mask=c < C)
        tl.store(to + row, n2, mask=c < C)
        tl.store(to + 2 * row, mean, mask=c < C)
        tl.store(to + 3 * row, m2, mask=c < C)
