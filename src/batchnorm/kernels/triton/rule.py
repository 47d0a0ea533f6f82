"""The arithmetic on channel vectors: plan and move of `layers/rule.py` on a step's numbers, in float64."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.activation import LEAKY
from batchnorm.kernels.triton.reduction import merged, put, taken
from batchnorm.kernels.triton.tiles import finite, read, times

# Where a step's numbers lie, as `kernels.traced` has them too.
MEAN, SHARE, SPREAD, LOW, HIGH, SHIFT = (tl.constexpr(i) for i in range(6))
GAIN, Q, P, R, EPS, SLOPE = (tl.constexpr(i) for i in range(6, 12))
# Groups that a mask leaves with one value are as others, or meet the running statistics, or are refused.
OTHERS, POPULATION, REFUSED = (tl.constexpr(i) for i in range(3))
# Rows of `flags`, a column for each program.
PRESENT, FINITE, SEVERAL, SUMMED = (tl.constexpr(i) for i in range(4))


@triton.jit
def limited(v, low, high):
    """Clamped; limits that meet leave v out."""
    return tl.where(low == high, low, tl.where(v < low, low, tl.where(v > high, high, v)))


@triton.jit
def slope_of(num_ptr, ACT: tl.constexpr, ACC: tl.constexpr):
    """What multiplies negative outputs, where that is the activation."""
    if ACT == LEAKY:
        return tl.load(num_ptr + SLOPE).to(ACC)
    else:
        return 0.0


@triton.jit
def at_or_0(ptr, at, inside, like):
    """What a vector holds there, in float64; 0 where there is none."""
    if ptr is None:
        return tl.zeros_like(like)
    else:
        return read(ptr, at, inside, tl.float64)


@triton.jit
def or_1(ptr, at, inside, like):
    """Likewise, 1 where there is none."""
    if ptr is None:
        return tl.zeros_like(like) + 1.0
    else:
        return tl.load(ptr + at, mask=inside, other=1).to(tl.float64)


@triton.jit
def few_of(n, n2):
    """Where there is one value, or weights that tell no more than one does."""
    return (n > 0) & (n * n <= n2 * (1 + 1e-6))


@triton.jit(do_not_specialize=["groups", "chunks"])
def step_kernel(
    part_ptr, saved_ptr, num_ptr, gamma_ptr, beta_ptr, pm_ptr, pv_ptr, rest_ptr, from_mean_ptr, from_var_ptr,
    running_mean_ptr, running_var_ptr, next_ptr, flags_ptr, groups, chunks, C,
    LOG: tl.constexpr, QUIET: tl.constexpr, ROOT: tl.constexpr, CORRECTION: tl.constexpr, CENTRED: tl.constexpr,
    RELIABILITY: tl.constexpr, STORED: tl.constexpr, REDUCED: tl.constexpr, MOVES: tl.constexpr, FEW: tl.constexpr,
    FREQUENCY: tl.constexpr, BY_GROUP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Fill the rows of `kernels.calls.Saved`, and work out the next running statistics and whether they may move."""
    pid = tl.program_id(0)
    c = pid * BC + tl.arange(0, BC)
    inside, row = c < C, tl.cast(groups, tl.int64) * C
    share, spread, eps = tl.load(num_ptr + SHARE), tl.load(num_ptr + SPREAD), tl.load(num_ptr + EPS)
    weight = tl.load(num_ptr + MEAN)
    zero = tl.zeros([BC], tl.float64)
    gamma, beta = or_1(gamma_ptr, c, inside, zero), at_or_0(beta_ptr, c, inside, zero)
    all_n, all_n2, all_mean, all_m2 = zero, zero, zero, zero
    several, lonely = zero > 0, zero > 0
    for group in range(groups):
        at = group * C + c
        i = c
        if BY_GROUP:
            i = at
        saved = saved_ptr + at
        if STORED:
            n, n2, mean, m2 = zero, zero, zero, zero
        elif REDUCED:
            n, n2, mean, m2 = taken(saved, row, inside)
        else:
            n, n2, mean, m2 = merged(part_ptr, group, groups, chunks, c, C, CENTRED, BK)
        safe = tl.where(n > 0, n, 1.0)
        pm = at_or_0(pm_ptr, i, inside, zero)
        far = mean - pm
        own = m2 / safe + times(spread, far * far)
        used = times(weight, mean) + times(1 - weight, pm)
        own_v = zero + share
        var = at_or_0(rest_ptr, i, inside, zero)
        if LOG:
            var = tl.exp(var + times(share, tl.log(own)))
            own_v = tl.where(own > 0, share * var / own, 0.0)
        else:
            var += times(share, own)
        centre = times(1 - spread, mean) + times(spread, pm)
        ratio, follow, offset = zero + 1.0, zero + 1.0, zero
        if pv_ptr is not None:
            pv = at_or_0(pv_ptr, i, inside, zero)
            clipped = limited(tl.sqrt((var + eps) / (pv + eps)), tl.load(num_ptr + LOW), tl.load(num_ptr + HIGH))
            if QUIET:
                follow = clipped
            else:
                ratio = clipped
            shift = tl.load(num_ptr + SHIFT)
            offset = limited(far / tl.sqrt(pv + eps), -shift, shift)
        instead = (n <= 0) & (not STORED)
        put_mean, put_var = zero, zero + 1.0
        few = few_of(n, n2)
        if FEW == POPULATION:
            put_mean = tl.where(few, read(running_mean_ptr, c, inside, tl.float64), put_mean)
            put_var = tl.where(few, read(running_var_ptr, c, inside, tl.float64), put_var)
            instead |= few
        used, centre = tl.where(instead, put_mean, used), tl.where(instead, put_mean, centre)
        var = tl.where(instead, put_var, var)
        ratio, follow = tl.where(instead, 1.0, ratio), tl.where(instead, 1.0, follow)
        offset, own_v = tl.where(instead, 0.0, offset), tl.where(instead, 0.0, own_v)
        invstd = 1.0 / tl.sqrt(var + eps)
        put(saved, row, inside, n, n2, mean, m2)
        tl.store(saved + 4 * row, used, mask=inside)
        tl.store(saved + 5 * row, invstd, mask=inside)
        tl.store(saved + 6 * row, centre, mask=inside)
        tl.store(saved + 7 * row, own_v / safe, mask=inside)
        tl.store(saved + 8 * row, ratio, mask=inside)
        tl.store(saved + 9 * row, offset, mask=inside)
        tl.store(saved + 10 * row, invstd * ratio * gamma, mask=inside)
        tl.store(saved + 11 * row, offset * gamma + beta, mask=inside)
        tl.store(saved + 12 * row, follow, mask=inside)
        # The groups together.
        several |= (n > 0) & (few == 0)
        lonely |= few
        total = all_n + n
        part = tl.where(total > 0, n / tl.where(total > 0, total, 1.0), 0.0)
        delta = tl.where(n > 0, tl.where(all_n > 0, mean - all_mean, mean), 0.0)
        known = tl.where(all_n > 0, all_mean, 0.0)
        # The mean with an infinity is infinite, and of both signs NaN.
        all_mean = tl.where(n > 0, known + tl.where(finite(delta) & (all_n > 0), delta * part, mean), known)
        all_m2 += tl.where(n > 0, m2 + tl.where(all_n > 0, delta * delta * all_n * part, 0.0), 0.0)
        all_n, all_n2 = total, all_n2 + n2
    if flags_ptr is not None:
        present = (all_n > 0) | (c >= C)
        if FEW != OTHERS:
            present &= several | (c >= C)
        summed = (all_n > 0) & (all_n <= 1 + 1e-4) & (few_of(all_n, all_n2) == 0) & FREQUENCY
        lonely &= FEW == REFUSED
        good = finite(all_mean) & finite(all_m2)
        if MOVES:
            how_p, how_r, q = tl.load(num_ptr + P), tl.load(num_ptr + R), tl.load(num_ptr + Q)
            gain = tl.load(num_ptr + GAIN)
            unit = zero + 1.0
            enough = all_n - CORRECTION
            if RELIABILITY:
                unit = all_n2 / tl.where(all_n > 0, all_n, 1.0)
                enough = all_n - CORRECTION * unit
                whole = enough > 1e-6 * all_n
            else:
                whole = enough > 0
            batch_var = tl.where(whole, all_m2 / tl.where(whole, enough, 1.0), float("nan"))
            if from_mean_ptr is None:
                old_mean = at_or_0(running_mean_ptr, c, inside, zero)
                old_var = at_or_0(running_var_ptr, c, inside, zero)
            else:
                old_mean, old_var = at_or_0(from_mean_ptr, c, inside, zero), at_or_0(from_var_ptr, c, inside, zero)
            if ROOT:
                sigma = times(q, tl.sqrt(old_var + eps)) + times(how_p, tl.sqrt(batch_var + eps))
                var = sigma * sigma - eps
                var = tl.where(var < 0, 0.0, var)
            else:
                far = all_mean - old_mean
                var = times(q, old_var) + times(how_p, batch_var) + times(how_r, far * far)
            good &= finite(var)
            tl.store(next_ptr + c, times(1 - gain, old_mean) + times(gain, all_mean), mask=inside)
            tl.store(next_ptr + C + c, var, mask=inside)
        programs = tl.num_programs(0)
        good |= c >= C
        flags = flags_ptr + pid
        tl.store(flags + PRESENT * programs, tl.min(present.to(tl.int32), 0))
        tl.store(flags + FINITE * programs, tl.min(good.to(tl.int32), 0))
        tl.store(flags + SEVERAL * programs, 1 - tl.max((lonely & inside).to(tl.int32), 0))
        tl.store(flags + SUMMED * programs, 1 - tl.max((summed & inside).to(tl.int32), 0))
