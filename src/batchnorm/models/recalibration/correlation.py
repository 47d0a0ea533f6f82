"""How many independent batches a sequence of batches is worth, and what its error bars must be multiplied by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A sequence shorter than this many times its correlation time says too little about it.
ENOUGH = 50
_MOST_LAGS = 128


def correlation_times(sketches: list[Tensor]) -> Tensor:
    """How many batches tell as much as one independent batch, `(layers, 2)`: of the means, and of the variances.

    1 where none is correlated. sketches are the `(layers, d)` of `Totals`, half means and half
    variances. The time is 1 + 2 times the sum of the correlations at lags 1, 2, ..., ended at the first
    that noise could give. A correlation from K batches is too small by about the time over K, which
    is added. None is taken below 2 / sqrt(K), what one channel reaches by chance once in 20 times.

    Source: Geyer, "Practical Markov Chain Monte Carlo" (1992), section 3.3, for where the sum ends; Sokal, "Monte Carlo
    Methods in Statistical Mechanics" (1997), section 3, for ENOUGH.
    """
    if len(sketches) < 3:
        return torch.ones(sketches[0].shape[0] if sketches else 1, 2, dtype=torch.float64)
    rows, power = _centred(sketches)
    count = len(rows)
    times, going = torch.ones_like(power), torch.ones_like(power, dtype=torch.bool)
    for lag in range(1, min(count // 2, _MOST_LAGS) + 1):
        found = (rows[lag:] * rows[:-lag]).sum((0, 3)) / power + times / count
        going &= found > (2 if lag == 1 else 1) / math.sqrt(count)
        if not bool(going.any()):
            break
        times = torch.where(going, times + 2 * found, times)
    return times


def uncertain_time(sketches: list[Tensor]) -> float:
    """How much longer than `correlation_times` the time of the worst layer may well be: a factor, 1 or more.

    The correlation of neighbours in K batches is uncertain by 1 / sqrt(K).
    """
    count = max(len(sketches), 2)
    if len(sketches) < 3:
        return math.inf
    rows, power = _centred(sketches)
    first = float(((rows[1:] * rows[:-1]).sum((0, 3)) / power).max()) + 1 / count
    highest = min(max(first, 0.0) + 1 / math.sqrt(count), 0.95)
    time = float(correlation_times(sketches).max())
    return max(1.0, (1 + highest) / (1 - highest) / time)


def _centred(sketches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The sketches without their means, `(batches, layers, 2, d / 2)`, and their sums of squares."""
    rows = torch.stack(sketches).double().unflatten(2, (2, -1))
    rows = rows - rows.mean(0)
    return rows, rows.square().sum((0, 3)).clamp_min(torch.finfo(torch.float64).tiny)


def student(free: float) -> float:
    """The factor of a 95 % interval with so many degrees of freedom: 2.36 with 7, 1.96 with many.

    Source: Abramowitz and Stegun (1964), 26.7.5.
    """
    if free < 1:
        return math.inf
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / free**power for power, term in enumerate(terms, 1))


def deviation_limits(free: float) -> tuple[float, float]:
    """Times a standard deviation with so many degrees of freedom, its 95 % limits: 0.66 and 2.05 with 7.

    Source: Wilson and Hilferty, "The distribution of chi-square" (1931).
    """
    z, part = 1.959964, 2 / (9 * free)
    return tuple((1 - part + sign * z * math.sqrt(part)) ** -1.5 for sign in (1, -1))  # pyright: ignore
