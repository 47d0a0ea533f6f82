"""The sums of a gradient, the pull made of them, and the gradient of the input."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.activation import SILU, activated, gated
from batchnorm.kernels.triton.rule import MEAN, at_or_0, few_of, or_1, slope_of
from batchnorm.kernels.triton.tiles import over, place, read, rows_at, tile, weighed, write


@triton.jit
def behind(
    g, y_ptr, at, inside, centred, scale, shift, slope, ACT: tl.constexpr, DATA: tl.constexpr, ACC: tl.constexpr
):
    """The gradient behind the activation; what it saw is worked out again, or read from what it returned."""
    if ACT == 0:
        return g
    elif y_ptr is not None:
        return gated(g, read(y_ptr, at, inside, ACC), slope, ACT)
    else:
        z = centred * scale + shift
        if ACT < SILU:
            # By what is stored: a small output underflows.
            z = activated(z, slope, ACT).to(DATA).to(ACC)
        return gated(g, z, slope, ACT)


@triton.jit(do_not_specialize=["N", "groups", "blocks", "chunks", "span"])
def sums_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, mean_ptr, scale_ptr, shift_ptr, num_ptr, part_ptr,
    N, C, S, groups, blocks, chunks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, pid=None,
):  # fmt: skip
    """The sums of g and of g * (x - mean) of each chunk, `(2, groups, chunks, C)` in float64."""
    block, start, size, across, first, last, chunk, group, channel, there = place(
        pid, N, C, S, groups, blocks, span, LAST, WIDE, BR, BL
    )
    high, low, scale, shift = rows_at(mean_ptr, scale_ptr, shift_ptr, group * C + channel, there, ACC)
    slope = slope_of(num_ptr, ACT, ACC)
    sum_g, sum_gx = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    for t in range(first, last):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        chosen = weighed(w_ptr, beside, present, inside, ACC) != 0
        centred = (read(x_ptr, at, inside, ACC) - high) - low
        g = read(g_ptr, at, inside, ACC)
        g = behind(g, y_ptr, at, inside, centred, scale, shift, slope, ACT, x_ptr.dtype.element_ty, ACC)
        g = tl.where(chosen, g, 0.0)
        sum_g += g
        sum_gx += tl.where(chosen, g * centred, 0.0)
    to = part_ptr + (group * chunks + chunk) * C + channel
    tl.store(to, over(sum_g.to(tl.float64), LAST), mask=there)
    tl.store(to + tl.cast(groups, tl.int64) * chunks * C, over(sum_gx.to(tl.float64), LAST), mask=there)


@triton.jit(do_not_specialize=["groups", "chunks"])
def pull_kernel(
    part_ptr, saved_ptr, num_ptr, pulled_ptr, gamma_ptr, base_u_ptr, base_v_ptr, out_ptr, sums_ptr, dw_ptr, db_ptr,
    groups, chunks, C,
    SUMMED: tl.constexpr, FEW: tl.constexpr, BY_GROUP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The rows scale, u and v of the gradient, those of the sums, and the gradients of weight and bias."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside, row = c < C, tl.cast(groups, tl.int64) * C
    zero = tl.zeros([BC], tl.float64)
    gamma, dw, db = or_1(gamma_ptr, c, inside, zero), zero, zero
    for group in range(groups):
        at = group * C + c
        i = c
        if BY_GROUP:
            i = at
        saved = saved_ptr + at
        n, invstd = or_1(saved, 0, inside, zero), at_or_0(saved, 5 * row, inside, zero)
        ratio = or_1(saved, 8 * row, inside, zero)
        if SUMMED:
            sum_g, sum_gx = at_or_0(sums_ptr, at, inside, zero), at_or_0(sums_ptr + row, at, inside, zero)
        else:
            k = tl.arange(0, BK)
            part = part_ptr + (group * chunks + k)[:, None] * C + c[None, :]
            there = (k < chunks)[:, None] & inside[None, :]
            sum_g = tl.sum(read(part, 0, there, tl.float64), 0)
            sum_gx = tl.sum(read(part, row * chunks, there, tl.float64), 0) * invstd
            tl.store(sums_ptr + at, sum_g, mask=inside)
            tl.store(sums_ptr + row + at, sum_gx, mask=inside)
        dw += sum_gx * ratio + sum_g * at_or_0(saved, 9 * row, inside, zero)
        db += sum_g
        if out_ptr is not None:
            safe = tl.where(n > 0, n, 1.0)
            scale = invstd * gamma * ratio * or_1(saved, 12 * row, inside, zero)
            if pulled_ptr is None:
                own_u = tl.load(num_ptr + MEAN) / safe
                own_v = at_or_0(saved, 7 * row, inside, zero)
            else:
                own_u, own_v = tl.load(pulled_ptr) / safe, tl.load(pulled_ptr + 1) / safe
            u = tl.where(own_u == 0, 0.0, own_u * scale * sum_g) + at_or_0(base_u_ptr, i, inside, zero)
            v = tl.where(own_v == 0, 0.0, own_v * scale * sum_gx * invstd)
            v += at_or_0(base_v_ptr, i, inside, zero) * (invstd * invstd)
            if FEW:
                few = few_of(n, or_1(saved, row, inside, zero))
                u, v = tl.where(few, 0.0, u), tl.where(few, 0.0, v)
            tl.store(out_ptr + at, scale, mask=inside)
            tl.store(out_ptr + row + at, u, mask=inside)
            tl.store(out_ptr + 2 * row + at, v, mask=inside)
    if dw_ptr is not None:
        write(dw_ptr, c, dw, inside)
    if db_ptr is not None:
        write(db_ptr, c, db, inside)


@triton.jit(do_not_specialize=["N", "groups", "blocks", "span"])
def gradient_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, dx_ptr, dr_ptr, mean_ptr, forward_scale_ptr, forward_shift_ptr, num_ptr,
    centre_ptr, scale_ptr, u_ptr, v_ptr, N, C, S, groups, blocks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, pid=None,
):  # fmt: skip
    """`scale * g - w * (u + v * (x - centre))`, and the gradient of the residual."""
    block, start, size, across, first, last, _, group, channel, there = place(
        pid, N, C, S, groups, blocks, span, LAST, WIDE, BR, BL
    )
    vector = group * C + channel
    middle, rest, scale, u = rows_at(centre_ptr, scale_ptr, u_ptr, vector, there, ACC)
    v, slope = read(v_ptr, vector, there, ACC), slope_of(num_ptr, ACT, ACC)
    high, low, seen, shift = middle, rest, scale, u
    if ACT != 0 and y_ptr is None:
        high, low, seen, shift = rows_at(mean_ptr, forward_scale_ptr, forward_shift_ptr, vector, there, ACC)
    for t in range(first, last):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        w = weighed(w_ptr, beside, present, inside, ACC)
        x, g = read(x_ptr, at, inside, ACC), read(g_ptr, at, inside, ACC)
        g = behind(g, y_ptr, at, inside, (x - high) - low, seen, shift, slope, ACT, x_ptr.dtype.element_ty, ACC)
        if dr_ptr is not None:
            write(dr_ptr, at, tl.where(w != 0, g, 0.0), inside)
        if dx_ptr is not None:
            dx = scale * g - w * (u + tl.where(v == 0, 0.0, v * ((x - middle) - rest)))
            write(dx_ptr, at, tl.where(w != 0, dx, 0.0), inside)
