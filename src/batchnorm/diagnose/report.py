"""The report: a verdict, a table, HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from batchnorm.diagnose.evidence import Evidence, LayerEvidence
from batchnorm.diagnose.findings import Finding
from batchnorm.files import write_atomically
from batchnorm.models.batches import as_text

ExtraTable = tuple[str, list[str], list[list[str]]]


class Report:
    """What `diagnose` found.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(batchnorm.BatchNorm1d(3, method="pooled"))
        >>> data = torch.randn(512, 3).split(64)
        >>> _ = [model(batch) for batch in data]
        >>> report = batchnorm.diagnose(model, data)
        >>> report.ok, report.verdict
        (True, 'your statistics are fine')
    """

    def __init__(self, evidence: Evidence, findings: list[Finding]) -> None:
        self.evidence = evidence
        self.findings = findings

    @property
    def ok(self) -> bool:
        """Whether nothing above a note was found."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def layers(self) -> dict[str, LayerEvidence]:
        """The evidence of each layer by its path; `.drift` is in stored standard deviations."""
        return self.evidence.layers

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.ok:
            return "your statistics are fine"
        worst = [f for f in self.findings if f.severity != "note"]
        names = {f.layer for f in worst}
        return f"{len(worst)} finding{'s' * (len(worst) > 1)} in {len(names)} of {len(self.layers)} layers"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The verdict, the layers and the findings."""
        yield Text(self._headline(), style="bold")
        yield self._layer_table()
        if self.findings:
            yield self._finding_table()

    def __str__(self) -> str:
        return as_text(Group(self))

    def _headline(self) -> str:
        gap = self.evidence.output_gap
        outputs = "" if gap is None else f"; train and eval outputs differ by {gap:.1%} of their size"
        data = f"{self.evidence.samples} samples in {self.evidence.batches} batches"
        return f"Diagnosis: {self.verdict} ({data}{outputs})"

    def _layer_table(self) -> Table:
        table = Table("layer", title="stored against actual statistics", title_justify="left")
        for heading in ("drift (std)", "+-", "variance x", "values", "updates"):
            table.add_column(heading, justify="right")
        for row in self.layer_rows():
            table.add_row(*row)
        return table

    def layer_rows(self) -> list[list[str]]:
        """Name, drift, sampling error, variance factor, fewest values a channel, counter."""
        rows = []
        for name, layer in self.layers.items():
            if layer.collected.values is None:
                rows.append([name or "(root)", "never reached", "", "", "", _counter(layer)])
                continue
            ratio = 2.718281828459045**layer.var_log_ratio
            fewest = f"{layer.collected.fewest_values:.0f}"
            cells = [f"{layer.drift:.3f}", f"{layer.standard_error:.3f}", f"{ratio:.2f}", fewest]
            rows.append([name or "(root)", *cells, _counter(layer)])
        return rows

    def _finding_table(self) -> Table:
        table = Table("code", "layer", "what and why", "fix", title="findings", title_justify="left")
        style = {"error": "red", "warning": "yellow", "note": "dim"}
        for code, severity, layers, message, fix in self.grouped():
            table.add_row(Text(code, style=style[severity]), layers, message, fix)
        return table

    def grouped(self) -> list[tuple[str, str, str, str, str]]:
        """Findings with one code in many layers, gathered: the first layer's message and how many more."""
        by_code: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_code.setdefault(finding.code, []).append(finding)
        rows = []
        for code, group in by_code.items():
            if code == "BN104":
                group = sorted(group, key=lambda f: -self.layers[f.layer].drift)
            more = f" and {len(group) - 1} more" if len(group) > 1 else ""
            name = group[0].layer or "(root)"
            rows.append((code, group[0].severity, name + more, group[0].message, group[0].fix))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings."""
        layers = {
            name: {
                "drift": layer.drift,
                "standard_error": layer.standard_error,
                "variance_log_ratio": layer.var_log_ratio,
                "fewest_values": layer.collected.fewest_values if layer.collected.values else None,
                "momentum": layer.momentum,
                "num_batches_tracked": layer.counter,
                "frozen": layer.frozen,
            }
            for name, layer in self.layers.items()
        }
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "samples": self.evidence.samples,
            "batches": self.evidence.batches,
            "output_gap": self.evidence.output_gap,
            "layers": layers,
            "findings": [{**asdict(finding), "page": finding.page} for finding in self.findings],
        }

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, NaN and infinity as null."""
        text = json.dumps(finite(self.to_dict()), indent=2)
        write_atomically(path, lambda temporary: _write_text(temporary, text + "\n"))

    def to_html(
        self,
        path: str | Path,
        extra_charts: Sequence[tuple[str, str, Any]] = (),
        extra_tables: Sequence[ExtraTable] = (),
    ) -> None:
        """Write one page that opens without a network.

        Args:
            path: the file; replaced atomically.
            extra_charts: title, caption and an altair chart each.
            extra_tables: title, header and rows each.

        Raises:
            BatchNormError: the `report` extra is not installed, or the folder does not exist.
        """
        from batchnorm.diagnose.page import render

        page = render(self, extra_charts, extra_tables)
        write_atomically(path, lambda temporary: _write_text(temporary, page))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _counter(layer: LayerEvidence) -> str:
    return "" if layer.counter is None else str(layer.counter)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    return value
