"""The sums of a gradient, the pull made of them, and the gradient of the input."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.activation import LEAKY, RELU, RELU6, activated, gated
from batchnorm.kernels.triton.rule import MEAN, SLOPE, at_or_0, few_of, or_1
from batchnorm.kernels.triton.tiles import channels_of, over, place, split, tile, tiles_of, weighed


@triton.jit
def behind(
    g, y_ptr, at, inside, centred, scale, shift, slope, ACT: tl.constexpr, DATA: tl.constexpr, ACC: tl.constexpr
):
    """The gradient behind the activation; what it saw is worked out again, or read from what it returned."""
    if ACT == 0:
        return g
    elif y_ptr is not None:
        return gated(g, tl.load(y_ptr + at, mask=inside, other=0).to(ACC), slope, ACT)
    else:
        z = centred * scale + shift
        if ACT == RELU or ACT == LEAKY or ACT == RELU6:  # noqa: SIM109  as Triton compiles it
            # By what is stored: a small output underflows.
            z = activated(z, slope, ACT).to(DATA).to(ACC)
        return gated(g, z, slope, ACT)


@triton.jit
def sums_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, mean_ptr, scale_ptr, shift_ptr, num_ptr, part_ptr,
    N, C, S, groups, blocks, chunks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, ACT: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The sums of g and of g * (x - mean) of each chunk, `(2, groups, chunks, C)` in float64."""
    chunk, group, block, start, size = place(N, C, S, groups, blocks, LAST, WIDE)
    tiles, across = tiles_of(size, S, LAST, BR, BL)
    channel, there = channels_of(block, C, LAST, BL)
    vector = group * C + channel
    high, low = split(tl.load(mean_ptr + vector, mask=there, other=0), ACC)
    scale, shift, slope = high, low, 0.0
    if ACT != 0:
        scale = tl.load(scale_ptr + vector, mask=there, other=0).to(ACC)
        shift = tl.load(shift_ptr + vector, mask=there, other=0).to(ACC)
        slope = tl.load(num_ptr + SLOPE).to(ACC)
    sum_g, sum_gx = tl.zeros([BR, BL], ACC), tl.zeros([BR, BL], ACC)
    for t in range(chunk * span, tl.minimum((chunk + 1) * span, tiles)):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        chosen = weighed(w_ptr, beside, present, inside, ACC) != 0
        g = tl.load(g_ptr + at, mask=inside, other=0).to(ACC)
        centred = (tl.load(x_ptr + at, mask=inside, other=0).to(ACC) - high) - low
        g = behind(g, y_ptr, at, inside, centred, scale, shift, slope, ACT, x_ptr.dtype.element_ty, ACC)
        g = tl.where(chosen, g, 0.0)
        sum_g += g
        sum_gx += tl.where(chosen, g * centred, 0.0)
    to = part_ptr + (group * chunks + chunk) * C + channel
    tl.store(to, over(sum_g.to(tl.float64), LAST), mask=there)
    tl.store(to + groups * chunks * C, over(sum_gx.to(tl.float64), LAST), mask=there)


@triton.jit
def pull_kernel(
    part_ptr, saved_ptr, num_ptr, pulled_ptr, gamma_ptr, base_u_ptr, base_v_ptr, out_ptr, sums_ptr, dw_ptr, db_ptr,
    groups, chunks, C,
    SUMMED: tl.constexpr, FEW: tl.constexpr, BY_GROUP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The rows scale, u and v of the gradient, those of the sums, and the gradients of weight and bias."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside, row = c < C, groups * C
    zero = tl.zeros([BC], tl.float64)
    gamma, dw, db = or_1(gamma_ptr, c, inside, zero), zero, zero
    for group in range(groups):
        at = group * C + c
        i = c
        if BY_GROUP:
            i = at
        saved = saved_ptr + at
        n, invstd = tl.load(saved, mask=inside, other=1), tl.load(saved + 5 * row, mask=inside, other=0)
        ratio = tl.load(saved + 8 * row, mask=inside, other=1)
        if SUMMED:
            sum_g = tl.load(sums_ptr + at, mask=inside, other=0)
            sum_gx = tl.load(sums_ptr + row + at, mask=inside, other=0)
        else:
            k = tl.arange(0, BK)
            part = part_ptr + (group * chunks + k)[:, None] * C + c[None, :]
            there = (k < chunks)[:, None] & inside[None, :]
            sum_g = tl.sum(tl.load(part, mask=there, other=0), 0)
            sum_gx = tl.sum(tl.load(part + row * chunks, mask=there, other=0), 0) * invstd
            tl.store(sums_ptr + at, sum_g, mask=inside)
            tl.store(sums_ptr + row + at, sum_gx, mask=inside)
        dw += sum_gx * ratio + sum_g * tl.load(saved + 9 * row, mask=inside, other=0)
        db += sum_g
        if out_ptr is not None:
            safe = tl.where(n > 0, n, 1.0)
            scale = invstd * gamma * ratio * tl.load(saved + 12 * row, mask=inside, other=1)
            if pulled_ptr is None:
                own_u = tl.load(num_ptr + MEAN) / safe
                own_v = tl.load(saved + 7 * row, mask=inside, other=0)
            else:
                own_u, own_v = tl.load(pulled_ptr) / safe, tl.load(pulled_ptr + 1) / safe
            u = tl.where(own_u == 0, 0.0, own_u * scale * sum_g) + at_or_0(base_u_ptr, i, inside, zero)
            v = tl.where(own_v == 0, 0.0, own_v * scale * sum_gx * invstd)
            v += at_or_0(base_v_ptr, i, inside, zero) * (invstd * invstd)
            if FEW:
                few = few_of(n, tl.load(saved + row, mask=inside, other=1))
                u, v = tl.where(few, 0.0, u), tl.where(few, 0.0, v)
            tl.store(out_ptr + at, scale, mask=inside)
            tl.store(out_ptr + row + at, u, mask=inside)
            tl.store(out_ptr + 2 * row + at, v, mask=inside)
    if dw_ptr is not None:
        tl.store(dw_ptr + c, dw.to(dw_ptr.dtype.element_ty), mask=inside)
    if db_ptr is not None:
        tl.store(db_ptr + c, db.to(db_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, dx_ptr, dr_ptr, mean_ptr, forward_scale_ptr, forward_shift_ptr, num_ptr,
    centre_ptr, scale_ptr, u_ptr, v_ptr, N, C, S, groups, blocks, span,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, ACT: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """`scale * g - w * (u + v * (x - centre))`, and the gradient of the residual."""
    chunk, group, block, start, size = place(N, C, S, groups, blocks, LAST, WIDE)
    tiles, across = tiles_of(size, S, LAST, BR, BL)
    channel, there = channels_of(block, C, LAST, BL)
    vector = group * C + channel
    middle, rest = split(tl.load(centre_ptr + vector, mask=there, other=0), ACC)
    scale = tl.load(scale_ptr + vector, mask=there, other=0).to(ACC)
    u = tl.load(u_ptr + vector, mask=there, other=0).to(ACC)
    v = tl.load(v_ptr + vector, mask=there, other=0).to(ACC)
    high, low, seen, shift, slope = middle, rest, scale, u, 0.0
    if ACT != 0:
        slope = tl.load(num_ptr + SLOPE).to(ACC)
    if ACT != 0 and y_ptr is None:
        high, low = split(tl.load(mean_ptr + vector, mask=there, other=0), ACC)
        seen = tl.load(forward_scale_ptr + vector, mask=there, other=0).to(ACC)
        shift = tl.load(forward_shift_ptr + vector, mask=there, other=0).to(ACC)
    for t in range(chunk * span, tl.minimum((chunk + 1) * span, tiles)):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        w = weighed(w_ptr, beside, present, inside, ACC)
        x = tl.load(x_ptr + at, mask=inside, other=0).to(ACC)
        g = tl.load(g_ptr + at, mask=inside, other=0).to(ACC)
        g = behind(g, y_ptr, at, inside, (x - high) - low, seen, shift, slope, ACT, x_ptr.dtype.element_ty, ACC)
        if dr_ptr is not None:
            tl.store(dr_ptr + at, tl.where(w != 0, g, 0.0).to(dr_ptr.dtype.element_ty), mask=inside)
        if dx_ptr is not None:
            dx = scale * g - w * (u + tl.where(v == 0, 0.0, v * ((x - middle) - rest)))
            tl.store(dx_ptr + at, tl.where(w != 0, dx, 0.0).to(dx_ptr.dtype.element_ty), mask=inside)
