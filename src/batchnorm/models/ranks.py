"""Running statistics over processes: how far they differ, and one pooled version for all."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_module_with_shapes, a_process_group, arguments
from batchnorm.errors import BatchNormError
from batchnorm.layers import Moments
from batchnorm.layers.processes.group_state import named
from batchnorm.models.find import tracking_layers
from batchnorm.models.tables import LayerTable, as_text

# Mean, variance and weight per channel, and the batches of each rank.
Pooled = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class RankRow:
    """How one layer's statistics differ over ranks, in units of the pooled `sqrt(var + eps)`.

    mean_spread is the largest distance of a rank's mean from the pooled one, var_ratio the largest
    factor between a rank's variance and the pooled one, rank0_mean and rank0_var the same for rank 0
    alone, whose statistics DDP keeps; all over channels.
    """

    mean_spread: float
    var_ratio: float
    rank0_mean: float
    rank0_var: float


@dataclass(frozen=True)
class RankReport:
    """What `rank_report` and `sync_statistics` found: a row a layer, alike on every rank."""

    ranks: int
    layers: dict[str, RankRow]

    @property
    def ok(self) -> bool:
        """Whether every rank holds the same statistics, to the rounding of float32."""
        return all(row.mean_spread < 1e-5 and row.var_ratio < 1 + 1e-5 for row in self.layers.values())

    @property
    def differing(self) -> tuple[str, ...]:
        """The layers whose statistics differ, the worst first."""
        rows = {name: row for name, row in self.layers.items() if row.mean_spread >= 1e-5 or row.var_ratio >= 1 + 1e-5}
        return tuple(sorted(rows, key=lambda name: -max(rows[name].mean_spread, rows[name].var_ratio - 1)))

    def __rich__(self) -> LayerTable:
        said = "all the same" if self.ok else f"{len(self.differing)} of {len(self.layers)} layers differ"
        header = ("layer", "mean apart (std)", "variance x", "rank 0's mean off (std)", "rank 0's variance x")
        rows: list[tuple[str, ...]] = []
        for name in self.differing or self.layers:
            row = self.layers[name]
            cells = (row.mean_spread, row.var_ratio, row.rank0_mean, row.rank0_var)
            rows.append((name or "(root)", *(f"{cell:.3f}" for cell in cells)))
        return LayerTable(header, rows, f"Statistics of {self.ranks} ranks: {said}")

    def __str__(self) -> str:
        return as_text(self)


@arguments(model=a_module_with_shapes, group=a_process_group)
def rank_report(model: nn.Module, *, group: Any = None) -> RankReport:
    """Say which layers' running statistics differ over ranks, and by how much; nothing is changed.

    Example:
        >>> import torch, batchnorm
        >>> report = batchnorm.rank_report(torch.nn.BatchNorm1d(3))
        >>> report.ranks, report.ok
        (1, True)

    Every rank must call it. DDP broadcasts rank 0's buffers before each forward and throws the
    others away; the report shows what that costs. One collective for all layers.

    Raises:
        BatchNormError: no layer with running statistics; ranks whose layers differ.
    """
    return _report(tracking_layers(model), group)[0]


@arguments(model=a_module_with_shapes, group=a_process_group)
@torch.no_grad()
def sync_statistics(model: nn.Module, *, group: Any = None) -> RankReport:
    """Give every rank the pooled running statistics: weighted by batches seen, with the variance between ranks.

    Example:
        >>> import torch, batchnorm
        >>> batchnorm.sync_statistics(torch.nn.Sequential(torch.nn.BatchNorm1d(3))).ok
        True

    Every rank must call it, before evaluating or saving a model whose ranks saw different data.
    A rank weighs its `num_batches_tracked` (its `pooled_count` where the estimator keeps one), or 1
    where all counters are 0. Counters become the largest. Works on torch's layers as well; one collective.

    Returns:
        The report from before.

    Raises:
        BatchNormError: no layer with running statistics; ranks whose layers differ; statistics that are not finite on
            some rank. Every rank raises, and nothing is changed.
    """
    layers = tracking_layers(model)
    report, pooled = _report(layers, group)
    broken = [name for name, row in report.layers.items() if not isfinite(row.mean_spread + row.var_ratio)]
    if broken:
        raise BatchNormError(
            f"running statistics must be finite on every rank to be pooled; those of {broken[0] or '(root)'!r} are not"
        )
    for layer, (mean, var, count, batches) in zip(layers.values(), pooled, strict=True):
        layer.running_mean.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]
        layer.running_var.copy_(var)  # pyright: ignore[reportOptionalMemberAccess]
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(int(batches.max()))
        held = layer._buffers.get("pooled_count")
        if held is not None:
            held.fill_(float(count[0]))
    return report


def _report(layers: dict[str, _BatchNorm], group: Any) -> tuple[RankReport, list[Pooled]]:
    flat = torch.cat([_row(layer) for layer in layers.values()])
    everyone = _gather(flat, layers, group)
    rows: dict[str, RankRow] = {}
    pooled: list[Pooled] = []
    start = 0
    for name, layer in layers.items():
        c = layer.num_features
        part = everyone[:, start : start + 2 * c + 2]
        start += 2 * c + 2
        weight, batches, mean, var = part[:, :1], part[:, 1], part[:, 2 : 2 + c], part[:, 2 + c :]
        weight = torch.where(weight.sum() > 0, weight, 1.0).expand(-1, c)
        # Where the estimator counts values, its variance is exact and so is the pooled one.
        recipe: Any = getattr(layer, "recipe", None)
        correction = recipe.estimator.correction if "pooled_count" in layer._buffers else 0
        moments = Moments(weight, mean, var * (weight - correction).clamp_min(0)).pool()
        merged = moments.var(correction)
        # Ranks that agree show no difference, whatever correction their variances carry.
        std = (Moments(weight, mean, var * weight).pool().var(0) + layer.eps).sqrt()
        apart = ((mean - moments.mean) / std).abs()
        ratio = ((var + layer.eps).log() - std.square().log()).abs().exp()
        values = (apart.max(), ratio.max(), apart[0].max(), ratio[0].max())
        rows[name] = RankRow(*(float(value) for value in values))
        pooled.append((moments.mean, merged, moments.count, batches))
    return RankReport(len(everyone), rows), pooled


def _row(layer: _BatchNorm) -> Tensor:
    """Weight, batches, mean and variance of one layer, float64."""
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    batches = torch.zeros(()) if tracked is None else tracked
    count = layer._buffers.get("pooled_count")
    weight = batches if count is None else count
    parts = (weight.reshape(1), batches.reshape(1), mean, var)
    return torch.cat([part.detach().double() for part in parts])  # pyright: ignore[reportOptionalMemberAccess]


def _gather(flat: Tensor, layers: dict[str, _BatchNorm], group: Any) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return flat[None]
    # In their order: the vectors that follow have no names.
    mine = [(name, layer.num_features) for name, layer in layers.items()]
    told: list[Any] = [None] * dist.get_world_size(group)
    with named(group, "sync_statistics or rank_report"):
        dist.all_gather_object(told, (mine, version("batchnorm")), group=group)
    for rank, (theirs, number) in enumerate(told):
        if theirs != mine or number != version("batchnorm"):
            differ = sorted(set(theirs) ^ set(mine))[:3] or ["their order" if theirs != mine else f"version {number}"]
            raise BatchNormError(
                f"rank {rank} must hold the same layers as rank {dist.get_rank()}; they differ in {differ}"
            )
    everyone = [torch.empty_like(flat) for _ in told]
    with named(group, "sync_statistics or rank_report"):
        dist.all_gather(everyone, flat, group=group)
    return torch.stack(everyone)
