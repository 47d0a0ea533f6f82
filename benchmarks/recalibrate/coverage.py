"""How often the 95 % intervals of `recalibrate` hold the truth, over data of several kinds, with and without `until`.

A channel's mean is covered where it lies within `quantile` standard errors of the truth; so is its variance. Reported
are the coverage over the runs that say that their error bars hold, how many do, and how many batches were read.
`python benchmarks/recalibrate/coverage.py --runs 40`
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from common import keep
from torch import Tensor, nn

import batchnorm

CHANNELS, BATCH, BATCHES = 8, 32, 200
Data = tuple[Tensor, Any, Any]


def independent(g: torch.Generator) -> Data:
    return torch.randn(BATCHES, BATCH, CHANNELS, generator=g), 0.0, 1.0


def few(g: torch.Generator) -> Data:
    return torch.randn(24, 8, CHANNELS, generator=g), 0.0, 1.0


def heavy(g: torch.Generator) -> Data:
    """Student's t with 3 degrees of freedom."""
    chi = torch.randn(3, BATCHES, BATCH, CHANNELS, generator=g).square().sum(0)
    return torch.randn(BATCHES, BATCH, CHANNELS, generator=g) / (chi / 3).sqrt(), 0.0, 3.0


def lognormal(g: torch.Generator) -> Data:
    return torch.randn(BATCHES, BATCH, CHANNELS, generator=g).exp(), math.exp(0.5), (math.e - 1) * math.e


def correlated(g: torch.Generator) -> Data:
    """AR(1) 0.9 offsets of the batches, 5 % of the variance."""
    offset, rows = torch.randn(CHANNELS, generator=g) * 0.05**0.5, []
    for _ in range(BATCHES):
        offset = 0.9 * offset + (0.05 * 0.19) ** 0.5 * torch.randn(CHANNELS, generator=g)
        rows.append(offset)
    return torch.randn(BATCHES, BATCH, CHANNELS, generator=g) + torch.stack(rows)[:, None], 0.0, 1.05


def _classes() -> Tensor:
    centres = torch.randn(10, CHANNELS, generator=torch.Generator().manual_seed(99)) * 0.7
    return centres - centres.mean(0)


def sticky(g: torch.Generator) -> Data:
    """Half of each batch of one class, which stays with probability 0.95."""
    centres, own, rows = _classes(), 0, []
    for _ in range(BATCHES):
        if float(torch.rand(1, generator=g)) > 0.95:
            own = int(torch.randint(10, (1,), generator=g))
        label = torch.randint(10, (BATCH,), generator=g)
        label[: BATCH // 2] = own
        rows.append(torch.randn(BATCH, CHANNELS, generator=g) + centres[label])
    return torch.stack(rows), 0.0, 1 + centres.square().mean(0)


def sorted_by_class(g: torch.Generator) -> Data:
    centres = _classes()
    label = torch.arange(10).repeat_interleave(BATCHES * BATCH // 10)
    x = torch.randn(BATCHES * BATCH, CHANNELS, generator=g) + centres[label]
    return x.view(BATCHES, BATCH, CHANNELS), 0.0, 1 + centres.square().mean(0)


KINDS: dict[str, Callable[[torch.Generator], Data]] = {
    "independent": independent, "few": few, "heavy tails": heavy, "lognormal": lognormal, "correlated": correlated,
    "sticky": sticky, "sorted by class": sorted_by_class,
}  # fmt: skip


def one(kind: str, seed: int, until: float | None) -> tuple[float, float, int, bool]:
    """Coverage of the means and of the variances, batches read, and whether the bars are said to hold."""
    x, mean, var = KINDS[kind](torch.Generator().manual_seed(seed))
    layer = nn.BatchNorm1d(CHANNELS)
    result = batchnorm.recalibrate(layer, list(x), until=until, upstream="batch", progress=False)
    row, q = result.layers[""], result.quantile
    of_mean = (layer.running_mean - mean).abs() <= q * row.mean_error_per_channel
    of_var = (layer.running_var - var).abs() <= q * row.var_error_per_channel
    return float(of_mean.double().mean()), float(of_var.double().mean()), result.batches, bool(result.error_bars_hold)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    rows = []
    for kind in KINDS:
        for until in (0.03, 0.05, None):
            runs = [one(kind, seed, until) for seed in range(given.runs)]
            told = [run for run in runs if run[3]]
            row: dict[str, Any] = {
                "data": kind,
                "until": until,
                "bars said to hold": len(told) / len(runs),
                "batches": sum(r[2] for r in runs) / len(runs),
            }
            for index, name in enumerate(("mean", "variance")):
                row[f"coverage, {name}"] = sum(run[index] for run in told) / len(told) if told else None
            rows.append(row)
            print(row, flush=True)
    keep("coverage", {"runs": given.runs, "rows": rows})


if __name__ == "__main__":
    main()
