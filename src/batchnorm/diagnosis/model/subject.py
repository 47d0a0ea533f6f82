"""How a live model's evidence is printed, saved and drawn."""

from __future__ import annotations

import math
from typing import Any

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.report.channels import pack
from batchnorm.diagnosis.report.subject import Subject, Table
from batchnorm.models.batches import counted
from batchnorm.models.tables import part_of

COLUMNS = (
    "drift: distance from the stored to the actual mean, in stored standard deviations, +- its sampling error; "
    "variance x: factor between the stored and the actual variance; share: part of the change in the output that the "
    "layer causes; values: smallest number per channel in a batch; updates: num_batches_tracked"
)
CHOICE = {
    "stored": "stored statistics (eval mode)",
    "batch": "statistics of the batch (train mode)",
    "exact": "exact statistics (recalibrated)",
}
KEYS = {"exact": "recalibrated"}
OTHERS = {
    "rest": "stored statistics, dropout on",
    "without_padding": "statistics without padding",
    "eval_stored": "evaluation data: stored statistics",
    "eval_exact": "evaluation data: exact statistics of the loader",
    "eval_undone": "evaluation data: stored statistics, difference undone",
    "eval_prior": "evaluation data: stored statistics, classes weighed by their shares",
    "eval_own": "evaluation data: their own statistics",
}


class ModelSubject(Subject):
    """A live model."""

    kind = "model"
    fine = "your statistics are fine"
    evidence: Evidence

    @property
    def measured(self) -> str:
        """Samples, batches, passes, and how far the modes are apart."""
        e = self.evidence
        gap, exact = e.output_gap, e.recalibrated_gap
        outputs = "" if gap is None else f"; train and eval outputs differ by {part_of(gap, 'their size')}"
        outputs += "" if gap is None or exact is None else f", by {part_of(exact, '')} with exact statistics"
        part = (
            f" of {e.offered}" if e.partial and e.offered is not None else " (the loader has more)" if e.partial else ""
        )
        return f"{e.samples}{part} samples in {e.batches} batches, {e.passes:.1f} passes{outputs}"

    def tables(self) -> list[Table]:
        """The metric under each choice, and the layers."""
        found = [self._choices()] if self._rows() else []
        header = ["layer", "drift (std)", "+-", "variance x", "share", "values", "updates"]
        rows = [_row(v) for v in self.layers.values()]
        used = self.evidence.attributed
        caption = COLUMNS + (f"; shares on {counted(used, 'sample')}" if used else "")
        return [*found, Table("stored against actual statistics", header, rows, caption)]

    def _rows(self) -> list[list[Any]]:
        e = self.evidence
        return [[words, e.metric(name)] for name, words in (CHOICE | OTHERS).items() if e.metric(name) is not None]

    def _choices(self) -> Table:
        e = self.evidence
        effect = e.statistics
        caption = f"on {e.outcomes['stored'].samples} samples"
        if effect.gain is not None and math.isfinite(effect.error):
            caption += f"; exact against stored: {effect.after - effect.before:+.3g} (+- {effect.error:.2g}, paired)"
        caption += self._explained()
        caption += "; no metric= was given: predictions that agree with the loader's classes" if e.labelled else ""
        rows = [[words, f"{value:.4f}"] for words, value in self._rows()]
        return Table("the metric under each choice of statistics", ["normalised with", "metric"], rows, caption)

    def _explained(self) -> str:
        """Of the gap between stored and the batch's statistics, what exact ones close, and what nothing explains."""
        e = self.evidence
        stored, batch, exact = (e.metric(name) for name in CHOICE)
        if stored is None or batch is None or exact is None or not e.statistics.helps or batch == stored:
            return ""
        closed = min(max(0.0, (exact - stored) / (batch - stored)), 1.0)
        return f"; exact statistics close {closed:.0%} of the gap to the batch's; {1 - closed:.0%} is unexplained"

    def as_dict(self) -> dict[str, Any]:
        """Layers and gaps as plain numbers."""
        e = self.evidence
        return {
            "samples": e.samples,
            "batches": e.batches,
            "passes": e.passes,
            "output_gap": e.output_gap,
            "recalibrated_output_gap": e.recalibrated_gap,
            "other_output_gap": e.rest_gap,
            "metric": {KEYS.get(n, n): e.metric(n) for n in (CHOICE | OTHERS) if e.metric(n) is not None} or None,
            "effects": {
                name: _effect(found)
                for name, found in (("recalibrate", e.statistics), ("recalibrate on evaluation data", e.evaluation))
                if found.helps is not None
            },
            "evaluation_difference": e.difference.words or None,
            "layers": {name: _plain(layer) for name, layer in e.layers.items()},
        }

    def page(self) -> dict[str, Any]:
        """The strip of layers with their channels, and the metric."""
        widest = pack([_channels(layer) for layer in self.layers.values()])
        rows = [{**_drawn(layer), **channels} for layer, channels in zip(self.layers.values(), widest, strict=True)]
        return {"metric": self._rows(), "layers": rows, "bar": "drift", "unit": "stored standard deviations"}


def _row(layer: LayerEvidence) -> list[str]:
    counter = "" if layer.counter is None else str(layer.counter)
    name = layer.name or "(root)"
    if not layer.reached:
        return [name, "never reached", "", "", "", "", counter]
    share = "" if layer.share is None else f"{layer.share:.0%}"
    fewest = _fewest(layer)
    fewest = "" if fewest is None else f"{fewest:.0f}"
    error = f"{layer.standard_error:.3f}" if math.isfinite(layer.standard_error) else "unknown"
    return [name, f"{layer.drift:.3f}", error, f"{layer.factor:.2f}", share, fewest, counter]


def _plain(layer: LayerEvidence) -> dict[str, Any]:
    return {
        "drift": layer.drift,
        "standard_error": layer.standard_error,
        "variance_log_ratio": layer.var_log_ratio,
        "divergence": layer.divergence,
        "damage": layer.damage,
        "share": layer.share,
        "batch_spread": layer.spread,
        "variance_log_error": layer.var_log_error,
        "fewest_values": _fewest(layer),
        "momentum": layer.momentum,
        "num_batches_tracked": layer.counter,
        "frozen": layer.frozen,
    }


def _effect(effect: Effect) -> dict[str, Any]:
    numbers = {"before": effect.before, "after": effect.after, "gain": effect.gain, "standard_error": effect.error}
    return {"call": effect.what, "samples": effect.samples, "helps": effect.helps, "harms": effect.harms, **numbers,
            "output_moved": effect.moved}  # fmt: skip


def _fewest(layer: LayerEvidence) -> float | None:
    fewest = layer.collected.fewest_values
    return fewest if math.isfinite(fewest) else None


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
        "fewest values per channel": _fewest(layer),
        "variance off by a factor of": None if math.isnan(layer.factor) else round(layer.factor, 3),
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
