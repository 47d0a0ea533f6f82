"""The output; and, by the first program, the running statistics, once it is known whether the whole batch may enter."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.activation import activated
from batchnorm.kernels.triton.rule import FINITE, PRESENT, SEVERAL, SUMMED, slope_of
from batchnorm.kernels.triton.tiles import place, read, rows_at, tile, weighed, write

# As `kernels.calls.NONFINITE` has them.
PROPAGATE = tl.constexpr(1)
RAISE = tl.constexpr(2)


@triton.jit(do_not_specialize=["N", "groups", "blocks", "span", "programs"])
def apply_kernel(
    x_ptr, r_ptr, w_ptr, y_ptr, mean_ptr, scale_ptr, shift_ptr, num_ptr, N, C, S, groups, blocks, span,
    next_ptr, flags_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, skipped_ptr, outcome_ptr, programs,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, MOVES: tl.constexpr, NONFINITE: tl.constexpr, pid=None,
):  # fmt: skip
    """`activation((x - mean) * scale + shift + residual)`, and the statistics."""
    if flags_ptr is not None:  # noqa: SIM102  one is known when it is compiled, one when it runs
        if tl.program_id(0) == 0:
            settle(
                next_ptr, flags_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, skipped_ptr, outcome_ptr,
                programs, C, MOVES, NONFINITE,
            )  # fmt: skip
    block, start, size, across, first, last, _, group, channel, there = place(
        pid, N, C, S, groups, blocks, span, LAST, WIDE, BR, BL
    )
    high, low, scale, shift = rows_at(mean_ptr, scale_ptr, shift_ptr, group * C + channel, there, ACC)
    slope = slope_of(num_ptr, ACT, ACC)
    for t in range(first, last):
        at, inside, beside, present = tile(t, across, block, start, size, C, S, LAST, BR, BL)
        y = ((read(x_ptr, at, inside, ACC) - high) - low) * scale + shift
        if r_ptr is not None:
            y += read(r_ptr, at, inside, ACC)
        y = activated(y, slope, ACT)
        if w_ptr is not None:
            y = tl.where(weighed(w_ptr, beside, present, inside, ACC) != 0, y, 0.0)
        write(y_ptr, at, y, inside)


@triton.jit
def settle(
    next_ptr, flags_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, skipped_ptr, outcome_ptr, programs, C,
    MOVES: tl.constexpr, NONFINITE: tl.constexpr,
):  # fmt: skip
    """Move the statistics and count the batch, or count it as skipped; outcome says which, and what is refused."""
    present = all_of(flags_ptr + PRESENT * programs, programs)
    finite = all_of(flags_ptr + FINITE * programs, programs)
    several = all_of(flags_ptr + SEVERAL * programs, programs)
    summed = all_of(flags_ptr + SUMMED * programs, programs)
    sound = several & summed
    entered = present & sound
    legal = 1
    if NONFINITE != PROPAGATE:
        entered &= finite
    if NONFINITE == RAISE:
        legal = finite | (1 - present)
    tl.store(outcome_ptr, entered)
    tl.store(outcome_ptr + 1, legal)
    tl.store(outcome_ptr + 2, several)
    tl.store(outcome_ptr + 3, summed)
    if MOVES:
        if entered != 0:
            for first in range(0, C, 1024):
                c = first + tl.arange(0, 1024)
                mean = tl.load(next_ptr + c, mask=c < C, other=0)
                var = tl.load(next_ptr + C + c, mask=c < C, other=0)
                write(running_mean_ptr, c, mean, c < C)
                write(running_var_ptr, c, var, c < C)
        if tracked_ptr is not None:
            tl.store(tracked_ptr, tl.load(tracked_ptr) + entered)
        if skipped_ptr is not None:
            tl.store(skipped_ptr, tl.load(skipped_ptr) + (present - entered) * (sound & legal))


@triton.jit
def all_of(ptr, count):
    """Whether none of so many flags is 0."""
    found = 1
    for first in range(0, count, 1024):
        i = first + tl.arange(0, 1024)
        found &= tl.min(tl.load(ptr + i, mask=i < count, other=1), 0)
    return found
