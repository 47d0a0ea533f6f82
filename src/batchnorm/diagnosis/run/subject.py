"""How a run is printed, saved and drawn."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from batchnorm.diagnosis.report.subject import Subject, Table, Timeline
from batchnorm.diagnosis.run.evidence import LayerRun, RunEvidence

DRAWN = 8  # layers in a timeline


class RunSubject(Subject):
    """A training run."""

    kind = "run"
    fine = "nothing is wrong with the running statistics so far"
    evidence: RunEvidence

    @property
    def measured(self) -> str:
        """Steps and forwards."""
        return f"{self.evidence.steps} steps, {self.evidence.forwards} forwards in train mode"

    def tables(self) -> list[Table]:
        """A row a layer."""
        header = ["layer", "drift (std)", "+-", "gain", "window", "updates", "skipped", "steps in train", "in eval"]
        return [Table("the run at its last look", header, [_row(layer) for layer in self.layers.values()])]

    def as_dict(self) -> dict[str, Any]:
        """Counts and timelines."""
        return {
            "steps": self.evidence.steps,
            "forwards": self.evidence.forwards,
            "layers": {
                name: {
                    "drift": layer.drift,
                    "standard_error": layer.standard_error,
                    "variance_log_ratio": layer.variance_log_ratio,
                    "momentum": layer.momentum,
                    "updates": layer.updates,
                    "skipped": layer.skipped,
                    "batch_steps": layer.batch_steps,
                    "stored_steps": layer.stored_steps,
                    "modes": layer.modes,
                    "timeline": [asdict(point) for point in layer.timeline],
                }
                for name, layer in self.layers.items()
            },
        }

    def timelines(self) -> list[Timeline]:
        """Drift of the layers that drift most."""
        most = sorted(self.layers.values(), key=lambda layer: -layer.drift)[:DRAWN]
        lines = {layer.name or "(root)": [(float(p.step), p.drift) for p in layer.timeline] for layer in most}
        caption = (
            f"Distance of the batches' means from the running mean, in running standard deviations; the {len(most)} "
            "layers that drift most."
        )
        return [Timeline("Drift over the run", caption, lines)] if any(lines.values()) else []

    def page(self) -> dict[str, Any]:
        """The strip of layers at the last look, and the timeline."""
        rows = []
        for layer in self.layers.values():
            facts = {"momentum": layer.momentum, "updates": layer.updates, "skipped": layer.skipped}
            row = {"name": layer.name or "(root)", "value": layer.drift, "error": layer.standard_error}
            rows.append(
                {**row, "share": None, "facts": facts, "histogram": None, "width": 2, "data": "", "numbers": None}
            )
        return {"metric": [], "layers": rows, "bar": "drift", "unit": "running standard deviations"}


def _row(layer: LayerRun) -> list[str]:
    last = layer.timeline[-1] if layer.timeline else None
    steps = [str(layer.batch_steps), str(layer.stored_steps)]
    if last is None:
        return [layer.name or "(root)", "not seen", "", "", "", "", "", *steps]
    gain = "" if last.gain is None else f"{last.gain:.3g}"
    window = "" if last.window is None else f"{last.window:.0f}"
    numbers = [f"{layer.drift:.3f}", f"{layer.standard_error:.3f}", gain, window]
    return [layer.name or "(root)", *numbers, str(layer.updates), str(layer.skipped), *steps]
