"""A whole step in one launch or three each way, as `kernels.calls` does it natively: nothing is waited for."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import calls, native
from batchnorm.kernels.triton import alone, passes
from batchnorm.kernels.triton import backward as _backward
from batchnorm.kernels.triton.geometry import cut
from batchnorm.kernels.triton.passes import numbers_of
from batchnorm.kernels.triton.rule import step_kernel


class Spec(NamedTuple):
    """A step's numbers, as `kernels.traced` lays them out in float64, on the device; and its flags."""

    numbers: Tensor
    log: bool = False
    quiet: bool = False
    root: bool = False
    correction: int = 1
    centred: bool = True
    stored: bool = False
    activation: int = 0
    reliability: bool = False
    nonfinite: int = 0
    # What groups that a mask leaves with one value come to, as `rule` counts them, and whether weights repeat samples.
    few: int = 0
    frequency: bool = False


def spec(*numbers: Any, device: torch.device, few: int = 0, frequency: bool = False) -> Spec:
    """As `kernels.calls.spec`; what is a tensor of one value stays on the device."""
    mean, share, spread, log, low, high, quiet, shift, gain, q, p, r, root, correction, eps, *flags = numbers
    centred, stored, activation, slope, reliability, nonfinite = flags
    values = [mean, share, spread, low, high, shift, gain, q, p, r, eps, slope]
    told = log, quiet, root, correction, centred, stored, activation, reliability, nonfinite, few, frequency
    return Spec(numbers_of(values, device), *told)


def _spread(v: Tensor | None, groups: int, channels: int, by_group: bool) -> Tensor | None:
    if v is None:
        return None
    return (v.expand(groups, channels) if by_group else v.reshape(-1).expand(channels)).contiguous()


def _by_group(*vectors: Tensor | None) -> bool:
    return any(v is not None and v.dim() == 2 and len(v) > 1 for v in vectors)


def forward(
    chosen: Spec,
    x: Tensor,
    last: bool,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_weight: Tensor | None,
    vectors: calls.Vectors,
    statistics: calls.Statistics | None,
    moves: bool,
    saved: calls.Saved | None = None,
    arrived: Any = None,
) -> tuple[Tensor, calls.Saved, Tensor | None]:
    """Normalise x, which `native.arranged` has arranged; y, the channel vectors, and what happened.

    What happened is four integers on the device: whether the batch entered the statistics, and whether its values, the
    sizes of its groups and its weights may be what they are. With saved given it holds the moments already. arrived
    makes a counter, the layer's own, that is 0 between launches.
    """
    at, channels, reduced, k = cut(x, last, groups), x.shape[1], saved is not None, chosen
    y, held = native.blank(x), passes.spread(sample_weight, x)
    if saved is None:
        saved = calls.Saved(groups, channels, x.new_empty(calls.ROWS * groups * channels, dtype=torch.float64))
    by_group = _by_group(*vectors[:3])
    given = [_spread(v, groups, channels, by_group) for v in vectors[:3]]
    given += [_spread(v, groups, channels, False) for v in vectors[3:]]
    settles = moves or k.few != 0 or k.frequency
    programs = at.channels[0]
    next_, flags, outcome, buffers = None, None, None, statistics or (None,) * 4
    if settles:
        next_ = x.new_empty(2 * channels, dtype=torch.float64) if moves else None
        flags, outcome = x.new_empty(4 * programs, dtype=torch.int32), x.new_empty(4, dtype=torch.int32)
    moved = buffers if moves else (None,) * 4
    step = (saved.values, k.numbers, weight, bias, *given, *buffers[:2], next_, flags)
    flagged = {
        "LOG": k.log, "QUIET": k.quiet, "ROOT": k.root, "CORRECTION": k.correction, "CENTRED": k.centred,
        "RELIABILITY": k.reliability, "STORED": k.stored, "MOVES": moves, "FEW": k.few, "FREQUENCY": k.frequency,
        "BY_GROUP": by_group, "BK": at.bk, "BC": at.bc,
    }  # fmt: skip
    with passes.here(x):
        if at.alone and not reduced:
            alone.forward_kernel[at.channels](
                x, residual, held, y, None if k.stored else passes.chunked(x, at, 4), *step, *moved[2:], outcome,
                arrived(x.device) if settles else None, *at.sizes, at.span,
                ACT=k.activation, NONFINITE=k.nonfinite, **flagged, **passes.launched(at),
            )  # fmt: skip
            return y, saved, outcome
        part = None if reduced or k.stored else passes.reduced(x, at, held, k.centred)
        step_kernel[at.channels](part, *step, groups, at.chunks, channels, REDUCED=reduced, **flagged)
        rows = (saved.row(4), saved.row(10), saved.row(11))
        to = (next_, flags, *moved, outcome)
        passes.applied(x, y, residual, held, at, rows, k.numbers, k.activation, to, programs, moves, k.nonfinite)
    return y, saved, outcome


def backward(
    chosen: Spec,
    g: Tensor,
    x: Tensor,
    y: Tensor | None,
    last: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    sample_weight: Tensor | None,
    saved: calls.Saved,
    wants: tuple[bool, bool, bool],
    pull: Any = None,
    sums: Tensor | None = None,
    phase: int = calls.WHOLE,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """As `kernels.calls.backward`: the gradients of x, weight, bias and the residual, and the sums."""
    groups, channels = saved.groups, saved.channels
    at, held, numbers = cut(x, last, groups), passes.spread(sample_weight, x), chosen.numbers
    reads = y is not None
    kept, act = (saved.row(4), saved.row(10), saved.row(11)), chosen.activation
    dw, db = (
        torch.empty_like(v) if v is not None and want and phase != calls.REST else None
        for v, want in zip((weight, bias), wants[1:], strict=True)
    )
    dx = native.blank(x) if wants[0] and phase != calls.SUMS else None
    dr = native.blank(x) if reads and phase != calls.SUMS else None
    out = x.new_empty((3, groups, channels), dtype=torch.float64) if phase != calls.SUMS else None
    pulled, bases, by_group = None, (None, None), False
    if pull is not None:
        pulled = numbers_of([pull.own_u, pull.own_v], x.device)
        by_group = _by_group(pull.base_u, pull.base_v)
        bases = [_spread(v, groups, channels, by_group) for v in (pull.base_u, pull.base_v)]
    whole = at.alone and phase == calls.WHOLE and sums is None
    with passes.here(x):
        summed = sums is not None
        part = passes.chunked(x, at, 2) if whole else None
        if not (whole or summed):
            part = passes.summed(g, x, y, held, at, kept, numbers, act)
        if sums is None:
            sums = x.new_empty((2, groups, channels), dtype=torch.float64)
        pull_of = (part, saved.values, numbers, pulled, weight, *bases, out, sums, dw, db)
        flagged = {"FEW": chosen.few == 1, "BY_GROUP": by_group, "BK": at.bk, "BC": at.bc}
        if whole:
            alone.backward_kernel[at.channels](
                g, x, y, held, dx, dr, *pull_of, *at.sizes, at.span, ACT=act, **flagged, **passes.launched(at)
            )
            return dx, dw, db, dr, sums
        _backward.pull_kernel[at.channels](*pull_of, groups, at.chunks, channels, SUMMED=summed, **flagged)
        if out is not None and (dx is not None or dr is not None):
            vectors = (*kept, numbers, saved.row(6), *out.unbind(0))
            passes.sent(g, x, y, held, dx, dr, at, vectors, act)
    return dx, dw, db, dr, sums
