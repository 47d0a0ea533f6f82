"""How a live model's evidence is printed, saved and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchnorm.diagnosis.model.choices import NAMES
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.report.channels import pack
from batchnorm.diagnosis.report.subject import Table

COLUMNS = (
    "drift: from the stored mean to the actual, in stored standard deviations, +- its sampling error; variance off x: "
    "the factor between stored and actual; share: of the change in the output; values: the fewest a channel had in a "
    "batch; updates: num_batches_tracked"
)
CHOICE = {
    "stored": "stored statistics (eval mode)",
    "batch": "the batch's own (train mode)",
    "recalibrated": "exact ones (recalibrated)",
}


class ModelSubject:
    """A live model."""

    kind = "model"
    fine = "your statistics are fine"

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    @property
    def layers(self) -> Mapping[str, LayerEvidence]:
        """The evidence of each layer by its path."""
        return self.evidence.layers

    @property
    def measured(self) -> str:
        """Samples, batches, and how far the modes are apart."""
        gap, exact = self.evidence.output_gap, self.evidence.choices.recalibrated_gap
        outputs = "" if gap is None else f"; train and eval outputs differ by {gap:.1%} of their size"
        outputs += "" if gap is None or exact is None else f", by {exact:.1%} with exact statistics"
        return f"{self.evidence.samples} samples in {self.evidence.batches} batches{outputs}"

    def tables(self) -> list[Table]:
        """The metric under each choice, and the layers."""
        found = [self._choices()] if self.evidence.choices.metric else []
        header = ["layer", "drift (std)", "+-", "variance off x", "share", "values", "updates"]
        rows = [_row(v) for v in self.layers.values()]
        return [*found, Table("stored against actual statistics", header, rows, COLUMNS)]

    def _choices(self) -> Table:
        choices = self.evidence.choices
        rows = [[CHOICE[name], f"{choices.mean(name):.4f}"] for name in NAMES]
        return Table("the metric under each choice of statistics", ["normalised with", "metric"], rows)

    def as_dict(self) -> dict[str, Any]:
        """Layers and gaps as plain numbers."""
        e = self.evidence
        return {
            "samples": e.samples,
            "batches": e.batches,
            "output_gap": e.output_gap,
            "recalibrated_output_gap": e.choices.recalibrated_gap,
            "other_output_gap": e.rest_gap,
            "metric": {name: e.choices.mean(name) for name in NAMES} if e.choices.metric else None,
            "layers": {name: _plain(layer) for name, layer in e.layers.items()},
        }

    def page(self) -> dict[str, Any]:
        """The strip of layers with their channels, and the metric."""
        choices = self.evidence.choices
        metric = [[CHOICE[n], choices.mean(n)] for n in NAMES] if choices.metric else []
        widest = pack([_channels(layer) for layer in self.layers.values()])
        rows = [{**_drawn(layer), **channels} for layer, channels in zip(self.layers.values(), widest, strict=True)]
        return {"metric": metric, "layers": rows, "bar": "drift", "unit": "stored standard deviations"}


def _row(layer: LayerEvidence) -> list[str]:
    counter = "" if layer.counter is None else str(layer.counter)
    name = layer.name or "(root)"
    if not layer.reached:
        return [name, "never reached", "", "", "", "", counter]
    share = "" if layer.share is None else f"{layer.share:.0%}"
    fewest = f"{layer.collected.fewest_values:.0f}"
    factor = math.exp(min(layer.var_log_ratio, 50.0)) if layer.var_log_ratio == layer.var_log_ratio else math.nan
    return [name, f"{layer.drift:.3f}", f"{layer.standard_error:.3f}", f"{factor:.2f}", share, fewest, counter]


def _plain(layer: LayerEvidence) -> dict[str, Any]:
    return {
        "drift": layer.drift,
        "standard_error": layer.standard_error,
        "variance_log_ratio": layer.var_log_ratio,
        "divergence": layer.divergence,
        "damage": layer.damage,
        "share": layer.share,
        "batch_spread": layer.spread,
        "padding": layer.inputs.padding,
        "fewest_values": layer.collected.fewest_values if layer.reached else None,
        "momentum": layer.momentum,
        "num_batches_tracked": layer.counter,
        "frozen": layer.frozen,
    }


def _channels(layer: LayerEvidence) -> list[Any]:
    """Stored mean and deviation, actual mean and deviation: a tensor each, or nothing."""
    values = layer.collected.values
    stored = [layer.mean, layer.var.clamp_min(0).sqrt()]
    return stored if values is None else [*stored, values.mean.cpu(), values.var(1).cpu().sqrt()]


def _drawn(layer: LayerEvidence) -> dict[str, Any]:
    facts = {
        "class": layer.kind,
        "channels": layer.mean.numel(),
        "updates": layer.counter,
        "momentum": layer.momentum,
        "eps": layer.eps,
        "fewest values a channel": layer.collected.fewest_values if layer.reached else None,
        "variance off by a factor of": round(math.exp(min(layer.var_log_ratio, 50.0)), 3)
        if layer.var_log_ratio == layer.var_log_ratio
        else None,
        "divergence (nats)": _short(layer.divergence),
        "frozen": "yes" if layer.frozen else "no",
    }
    counts = layer.inputs.histogram
    histogram = None
    if counts is not None:
        histogram = [int(v) for v in [layer.inputs.below, *counts.tolist(), layer.inputs.above]]
    return {
        "name": layer.name or "(root)",
        "value": _short(layer.drift),
        "error": _short(layer.standard_error),
        "share": _short(layer.share),
        "facts": facts,
        "histogram": histogram,
    }


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
