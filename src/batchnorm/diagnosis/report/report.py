"""The report: a verdict, tables and findings, as text, JSON and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm.arguments import a_path, arguments, instance, several_of
from batchnorm.diagnosis.findings import Finding
from batchnorm.diagnosis.report.subject import Subject, Table, Timeline
from batchnorm.files import write_atomically
from batchnorm.models.batches import counted
from batchnorm.models.tables import as_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


# Of the layers that a finding is about.
MOST_NAMES = 4


class Report:
    """What `diagnose`, `inspect_checkpoint`, `watch` and `lint` found.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(batchnorm.BatchNorm1d(3, method="pooled"))
        >>> data = torch.randn(512, 3).split(64)
        >>> _ = [model(batch) for batch in data]
        >>> report = batchnorm.diagnose(model, data)
        >>> report.ok, report.verdict
        (True, 'your statistics are fine')
    """

    def __init__(self, subject: Subject, findings: list[Finding]) -> None:
        self.subject = subject
        self._findings = findings

    @property
    def findings(self) -> list[Finding]:
        """All findings, the most severe first, causes before symptoms."""
        return self._findings

    @property
    def ok(self) -> bool:
        """Whether nothing above a note was found."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def layers(self) -> Mapping[str, Any]:
        """What is known of each layer by its path; of a model, `.drift` is in stored standard deviations."""
        return self.subject.layers

    @property
    def evidence(self) -> Any:
        """Everything the rules rest on."""
        return getattr(self.subject, "evidence", self.subject)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.ok:
            elsewhere = any(finding.code == "BN118" for finding in self.findings)
            notes = counted(len(self.findings), "note")
            if self.findings and self.subject.kind == "source":
                return f"{notes} in {self._spread(self.findings)}"
            said = self.subject.fine + (": the gap has another cause" if elsewhere else "")
            return f"{said}, {notes}" if len(self.findings) > elsewhere else said
        worst = [f for f in self.findings if f.severity != "note"]
        return f"{counted(len(worst), 'finding')} in {self._spread(worst)}"

    def _spread(self, findings: list[Finding]) -> str:
        """In how many of the layers, or of the files, these are."""
        source = self.subject.kind == "source"
        places = {f.layer.rsplit(":", 1)[0] if source else f.layer for f in findings}
        return f"{len(places)} of {counted(len(self.layers), 'file' if source else 'layer')}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The verdict, the tables and the findings."""
        from batchnorm.diagnosis.report.terminal import parts

        yield from parts(self)

    def __str__(self) -> str:
        return as_text(self)

    def headline(self) -> str:
        """The verdict and what it rests on."""
        return f"Diagnosis: {self.verdict} ({self.subject.measured})"

    def grouped(self) -> list[tuple[str, str, str, str, str, str]]:
        """Findings with one code in many layers, gathered: the first layers' names and the first one's message."""
        if self.subject.kind == "source":
            return [(f.code, f.severity, f.layer, f.message, f.fix, f.tried) for f in self.findings]
        by_code: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            by_code.setdefault((finding.code, finding.severity), []).append(finding)
        rows = []
        for (code, _), group in by_code.items():
            names = [finding.layer or ("(root)" if "" in self.layers else "(model)") for finding in group]
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            message = f"{names[0]}: {group[0].message}" if len(names) > 1 else group[0].message
            word = "layers " if len(names) > 1 else "" if names[0].startswith("(") else "layer "
            where = word + ", ".join(names[:MOST_NAMES]) + more
            part = group[0].share
            share = "" if part is None else f"alone it explains {part:.0%} of what recalibrating gains"
            tried = "; ".join(said for said in (group[0].tried, share) if said)
            rows.append((code, group[0].severity, where, message, group[0].fix, tried))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, NaN and infinity as None; docs/report.md has the schema."""
        return finite(
            {
                "kind": self.subject.kind,
                "ok": self.ok,
                "verdict": self.verdict,
                **self.subject.as_dict(),
                "findings": [{**asdict(finding), "page": finding.page} for finding in self.findings],
            }
        )

    @arguments(path=a_path)
    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        text = json.dumps(self.to_dict(), indent=2)
        write_atomically(path, lambda temporary: _write_text(temporary, text + "\n"))

    @arguments(
        path=a_path,
        timelines=several_of(instance(Timeline, "a Timeline")),
        tables=several_of(instance(Table, "a Table")),
    )
    def to_html(self, path: str | Path, timelines: Sequence[Timeline] = (), tables: Sequence[Table] = ()) -> None:
        """Write one page that opens without a network.

        Args:
            path: the file; replaced atomically.
            timelines: lines over steps, beside those the report has itself.
            tables: shown above the findings.

        Raises:
            BatchNormError: the folder does not exist.
        """
        from batchnorm.diagnosis.report.page import render

        page = render(self, timelines, tables)
        write_atomically(path, lambda temporary: _write_text(temporary, page))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    return value
