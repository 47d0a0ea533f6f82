"""How often the 95 % intervals of `recalibrate` hold the truth, over data of several kinds, with and without `until`.

A channel's mean is covered where it lies within `quantile` standard errors of the truth; so is its variance. Reported
are the share of the runs that say that their error bars hold, and that they do not; the coverage over those that hold,
and over all others; and how many batches were read. Exchangeable data come from a loader that shuffles, streams from
a generator, and sorted data from a list. `python benchmarks/recalibrate/coverage.py --runs 40`
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from common import keep
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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


def _autoregressive(g: torch.Generator, memory: float, batches: int) -> Data:
    """Offsets of the batches that are 5 % of the variance."""
    offset, rows = torch.randn(CHANNELS, generator=g) * 0.05**0.5, []
    for _ in range(batches):
        offset = memory * offset + (0.05 * (1 - memory**2)) ** 0.5 * torch.randn(CHANNELS, generator=g)
        rows.append(offset)
    return torch.randn(batches, BATCH, CHANNELS, generator=g) + torch.stack(rows)[:, None], 0.0, 1.05


def correlated(g: torch.Generator) -> Data:
    """Neighbours' offsets have a correlation of 0.9."""
    return _autoregressive(g, 0.9, BATCHES)


def correlated_long(g: torch.Generator) -> Data:
    """The same, ten times as long."""
    return _autoregressive(g, 0.9, 10 * BATCHES)


def weakly_correlated(g: torch.Generator) -> Data:
    """Neighbours' offsets have a correlation of 0.4."""
    return _autoregressive(g, 0.4, 2 * BATCHES)


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
    "independent": independent, "few": few, "heavy tails": heavy, "lognormal": lognormal,
    "weakly correlated": weakly_correlated, "correlated": correlated, "correlated, 2000 batches": correlated_long,
    "sticky": sticky, "sorted by class": sorted_by_class,
}  # fmt: skip
SHUFFLED = ("independent", "few", "heavy tails", "lognormal")


def loader_of(kind: str, x: Tensor, seed: int) -> Any:
    """As such data would be read."""
    if kind in SHUFFLED:
        g = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(x.flatten(0, 1)), batch_size=x.shape[1], shuffle=True, generator=g)
    return list(x) if kind == "sorted by class" else iter(x)


def one(kind: str, seed: int, until: float | None) -> tuple[float, float, int, bool | None]:
    """Coverage of the means and of the variances, batches read, and whether the bars are said to hold."""
    x, mean, var = KINDS[kind](torch.Generator().manual_seed(seed))
    layer = nn.BatchNorm1d(CHANNELS)
    loader = loader_of(kind, x, seed)
    result = batchnorm.recalibrate(layer, loader, until=until, upstream="batch", progress=False)
    row, q = result.layers[""], result.quantile
    of_mean = (layer.running_mean - mean).abs() <= q * row.mean_error_per_channel
    of_var = (layer.running_var - var).abs() <= q * row.var_error_per_channel
    return float(of_mean.double().mean()), float(of_var.double().mean()), result.batches, result.error_bars_hold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    rows = []
    for kind in KINDS:
        for until in (0.03, None):
            runs = [one(kind, seed, until) for seed in range(given.runs)]
            told, others = [run for run in runs if run[3]], [run for run in runs if not run[3]]
            row: dict[str, Any] = {
                "data": kind,
                "until": until,
                "bars said to hold": len(told) / len(runs),
                "not to hold": sum(run[3] is False for run in runs) / len(runs),
                "batches": sum(r[2] for r in runs) / len(runs),
            }
            for where, part in (("", told), (", others", others)):
                for index, name in enumerate(("mean", "variance")):
                    row[f"coverage, {name}{where}"] = sum(run[index] for run in part) / len(part) if part else None
            rows.append(row)
            print(row, flush=True)
    keep("coverage", {"runs": given.runs, "rows": rows})


if __name__ == "__main__":
    main()
