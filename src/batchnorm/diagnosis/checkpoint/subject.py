"""How a checkpoint's evidence is printed, saved and drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.diagnosis.checkpoint.compare import Comparison
from batchnorm.diagnosis.checkpoint.evidence import CheckpointEvidence, StoredLayer
from batchnorm.diagnosis.report.channels import pack
from batchnorm.diagnosis.report.subject import Subject, Table
from batchnorm.models.batches import counted


class CheckpointSubject(Subject):
    """One file, or two compared."""

    kind = "checkpoint"
    fine = "nothing wrong can be seen in the file alone"

    def __init__(self, evidence: CheckpointEvidence, comparison: Comparison | None = None) -> None:
        super().__init__(evidence)
        self.comparison = comparison

    @property
    def measured(self) -> str:
        """The file and its size."""
        e = self.evidence
        channels = sum(layer.channels for layer in e.layers.values())
        size = f"{e.size / 1e6:.1f} MB" if e.size >= 1e5 else f"{e.size / 1e3:.1f} kB"
        under = f" in {' and '.join(e.keys)}" if any(e.keys) else ""
        layers = f"{counted(len(e.layers), 'batch norm layer')}{under}"
        said = f"{e.path.name}: {size}, {layers}, {counted(channels, 'channel')}"
        if self.comparison is None:
            return said
        return f"{said}; against {self.comparison.second.path.name}: {_moved(self.comparison)}"

    def tables(self) -> list[Table]:
        """A row a layer."""
        header = ["layer", "channels", "updates", "median var", "smallest", "largest", "type"]
        found = [Table("stored statistics", header, [_row(layer) for layer in self.layers.values()])]
        if self.comparison is not None:
            moves = self.comparison.moves.values()
            rows = [[m.name, f"{m.mean:.3f}", f"{m.var:.3f}", f"{m.affine:.3g}", _count(m.updates)] for m in moves]
            header = ["layer", "mean moved (std)", "variance (log)", "weight and bias", "updates"]
            found = [Table("what moved", header, rows)]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Files and layers as plain numbers."""
        e = self.evidence
        found: dict[str, Any] = {
            "file": e.path.name,
            "bytes": e.size,
            "tensors": e.tensors,
            "keys": list(e.keys),
            "layers": {name: _plain(layer) for name, layer in e.layers.items()},
        }
        if self.comparison is not None:
            found["other"] = self.comparison.second.path.name
            found["moved"] = {
                m.name: {"mean": m.mean, "variance_log_ratio": m.var, "affine": m.affine, "updates": m.updates}
                for m in self.comparison.moves.values()
            }
            found["missing"] = self.comparison.missing
        return found

    def page(self) -> dict[str, Any]:
        """The strip: how far a layer moved, or how far its means lie from 0."""
        channels = pack([_vectors(layer) for layer in self.layers.values()])
        moves = self.comparison.moves if self.comparison else {}
        rows = []
        for layer, packed in zip(self.layers.values(), channels, strict=True):
            move = moves.get(layer.name)
            value = move.mean if move else (None if self.comparison else _distance(layer))
            facts = {"channels": layer.channels, "updates": layer.counter, "type": _type(layer)}
            row = {"name": layer.name or "(root)", "value": value, "error": None, "share": None, "facts": facts}
            rows.append({**row, "histogram": None, **packed})
        bar = "mean moved" if self.comparison else "mean from 0"
        return {"metric": [], "layers": rows, "bar": bar, "unit": "stored standard deviations"}


def _moved(comparison: Comparison) -> str:
    still = sum(move.still for move in comparison.moves.values())
    parts = [f"{counted(len(comparison.moves) - still, 'layer')} moved, {still} did not"]
    missing = len(comparison.missing)
    return ", ".join([*parts, f"{missing} {'is' if missing == 1 else 'are'} missing"] if missing else parts)


def _vectors(layer: StoredLayer) -> list[Tensor]:
    pair = layer.statistics
    return [] if pair is None else [pair[0], pair[1].clamp_min(0).sqrt()]


def _distance(layer: StoredLayer) -> float | None:
    if layer.statistics is None:
        return None
    mean, var = layer.statistics
    live = (var > 0) & torch.isfinite(mean + var)
    return float((mean[live].square() / var[live]).mean().sqrt()) if bool(live.any()) else None


def _type(layer: StoredLayer) -> str:
    return "/".join(sorted({str(layer.dtypes[k])[6:] for k in ("running_mean", "running_var") if k in layer.dtypes}))


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _row(layer: StoredLayer) -> list[str]:
    var = layer.var
    three = ["", "", ""] if var is None or not var.numel() else [f"{float(f(var)):.3g}" for f in _THREE]
    return [layer.name or "(root)", str(layer.channels), _count(layer.counter), *three, _type(layer)]


_THREE = (torch.median, torch.min, torch.max)


def _plain(layer: StoredLayer) -> dict[str, Any]:
    var = layer.var
    return {
        "channels": layer.channels,
        "num_batches_tracked": layer.counter,
        "dtype": _type(layer),
        "zero_variances": None if var is None else int((var == 0).sum()),
        "median_var": None if var is None or not var.numel() else float(var.median()),
        "keys": sorted(layer.shapes),
    }
