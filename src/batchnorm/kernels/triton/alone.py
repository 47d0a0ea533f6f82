"""A step of a small tensor in one launch each way: a program does all that there is to do with its channels."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from batchnorm.kernels.triton.backward import gradient_kernel, pull_kernel, sums_kernel
from batchnorm.kernels.triton.forward import apply_kernel, settle
from batchnorm.kernels.triton.reduction import reduce_kernel
from batchnorm.kernels.triton.rule import step_kernel


@triton.jit(do_not_specialize=["N", "groups", "blocks", "span"])
def forward_kernel(
    x_ptr, r_ptr, w_ptr, y_ptr,
    part_ptr, saved_ptr, num_ptr, gamma_ptr, beta_ptr, pm_ptr, pv_ptr, rest_ptr, from_mean_ptr, from_var_ptr,
    running_mean_ptr, running_var_ptr, next_ptr, flags_ptr, tracked_ptr, skipped_ptr, outcome_ptr, arrived_ptr,
    N, C, S, groups, blocks, span,
    LOG: tl.constexpr, QUIET: tl.constexpr, ROOT: tl.constexpr, CORRECTION: tl.constexpr, CENTRED: tl.constexpr,
    RELIABILITY: tl.constexpr, STORED: tl.constexpr, MOVES: tl.constexpr, FEW: tl.constexpr, FREQUENCY: tl.constexpr,
    BY_GROUP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
    ACT: tl.constexpr, NONFINITE: tl.constexpr,
):  # fmt: skip
    """`reduce_kernel`, `step_kernel` and `apply_kernel`; the program that comes last moves the statistics."""
    if not STORED:
        for group in range(groups):
            reduce_kernel(
                x_ptr, w_ptr, part_ptr, N, C, S, groups, blocks, 1, span, LAST, WIDE, ACC, BR, BL, CENTRED,
                group * blocks + tl.program_id(0),
            )  # fmt: skip
        # What some threads have stored, others read.
        tl.debug_barrier()
    step_kernel(
        part_ptr, saved_ptr, num_ptr, gamma_ptr, beta_ptr, pm_ptr, pv_ptr, rest_ptr, from_mean_ptr, from_var_ptr,
        running_mean_ptr, running_var_ptr, next_ptr, flags_ptr, groups, 1, C,
        LOG, QUIET, ROOT, CORRECTION, CENTRED, RELIABILITY, STORED, False, MOVES, FEW, FREQUENCY, BY_GROUP, BK, BC,
    )  # fmt: skip
    tl.debug_barrier()
    if flags_ptr is not None:
        programs = tl.num_programs(0)
        # All programs of this launch are counted up and, by the last, down again.
        if tl.atomic_add(arrived_ptr, 1) % programs == programs - 1:
            tl.atomic_add(arrived_ptr, -programs)
            settle(
                next_ptr, flags_ptr, running_mean_ptr, running_var_ptr, tracked_ptr, skipped_ptr, outcome_ptr,
                programs, C, MOVES, NONFINITE,
            )  # fmt: skip
    row = tl.cast(groups, tl.int64) * C
    for group in range(groups):
        apply_kernel(
            x_ptr, r_ptr, w_ptr, y_ptr, saved_ptr + 4 * row, saved_ptr + 10 * row, saved_ptr + 11 * row, num_ptr,
            N, C, S, groups, blocks, span, None, None, None, None, None, None, None, 0,
            LAST, WIDE, ACC, BR, BL, ACT, False, 0, group * blocks + tl.program_id(0),
        )  # fmt: skip


@triton.jit(do_not_specialize=["N", "groups", "blocks", "span"])
def backward_kernel(
    g_ptr, x_ptr, y_ptr, w_ptr, dx_ptr, dr_ptr,
    part_ptr, saved_ptr, num_ptr, pulled_ptr, gamma_ptr, base_u_ptr, base_v_ptr, out_ptr, sums_ptr, dw_ptr, db_ptr,
    N, C, S, groups, blocks, span,
    FEW: tl.constexpr, BY_GROUP: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """`sums_kernel`, `pull_kernel` and `gradient_kernel`."""
    row = tl.cast(groups, tl.int64) * C
    mean_ptr, scale_ptr, shift_ptr = saved_ptr + 4 * row, saved_ptr + 10 * row, saved_ptr + 11 * row
    for group in range(groups):
        sums_kernel(
            g_ptr, x_ptr, y_ptr, w_ptr, mean_ptr, scale_ptr, shift_ptr, num_ptr, part_ptr,
            N, C, S, groups, blocks, 1, span, LAST, WIDE, ACC, BR, BL, ACT, group * blocks + tl.program_id(0),
        )  # fmt: skip
    tl.debug_barrier()
    pull_kernel(
        part_ptr, saved_ptr, num_ptr, pulled_ptr, gamma_ptr, base_u_ptr, base_v_ptr, out_ptr, sums_ptr, dw_ptr, db_ptr,
        groups, 1, C, False, FEW, BY_GROUP, BK, BC,
    )  # fmt: skip
    tl.debug_barrier()
    if out_ptr is not None:
        for group in range(groups):
            gradient_kernel(
                g_ptr, x_ptr, y_ptr, w_ptr, dx_ptr, dr_ptr, mean_ptr, scale_ptr, shift_ptr, num_ptr,
                saved_ptr + 6 * row, out_ptr, out_ptr + row, out_ptr + 2 * row, N, C, S, groups, blocks, span,
                LAST, WIDE, ACC, BR, BL, ACT, group * blocks + tl.program_id(0),
            )  # fmt: skip
