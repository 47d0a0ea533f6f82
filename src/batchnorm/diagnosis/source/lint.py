"""The verb: read Python files, apply the rules, report."""

from __future__ import annotations

import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.diagnosis.findings import Finding
from batchnorm.diagnosis.report import Report
from batchnorm.diagnosis.report.subject import Table
from batchnorm.diagnosis.source.rules import check
from batchnorm.diagnosis.source.syntax import Source
from batchnorm.errors import BatchNormError
from batchnorm.models.batches import counted

LARGEST = 2_000_000  # bytes of a file
WORDS = (
    "atchNorm",
    "atch_norm",
    "running_",
    "moving_",
    "parameters()",
    "state_dict",
    "no_grad",
    "inference_mode",
    "bn",
)


@dataclass
class SourceEvidence:
    """The files read, lines each, and those that could not be read."""

    path: Path
    files: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class SourceSubject:
    """Source code."""

    kind = "source"
    fine = "nothing to say about batch norm"

    def __init__(self, evidence: SourceEvidence) -> None:
        self.evidence = evidence

    @property
    def layers(self) -> Mapping[str, int]:
        """Lines of each file."""
        return self.evidence.files

    @property
    def measured(self) -> str:
        """Files and lines."""
        e = self.evidence
        skipped = f", {len(e.unreadable)} could not be parsed" if e.unreadable else ""
        return f"{counted(len(e.files), 'file')}, {counted(sum(e.files.values()), 'line')}{skipped}"

    def tables(self) -> list[Table]:
        """Files that could not be parsed."""
        rows = [[name, why] for name, why in self.evidence.unreadable.items()]
        return [Table("not parsed", ["file", "why"], rows)] if rows else []

    def as_dict(self) -> dict[str, Any]:
        """Counts."""
        e = self.evidence
        return {"path": str(e.path), "files": len(e.files), "lines": sum(e.files.values()), "unreadable": e.unreadable}

    def page(self) -> dict[str, Any]:
        """Nothing is drawn."""
        return {"metric": [], "layers": [], "bar": "", "unit": ""}


def lint(path: str | Path) -> Report:
    """Say what Python source does wrong with batch norm's running statistics; nothing is imported or run.

    Example:
        >>> import tempfile, pathlib, batchnorm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "train.py"
        ...     _ = file.write_text("bn.running_mean = 0.9 * bn.running_mean + 0.1 * bn.running_mean")
        ...     report = batchnorm.lint(file)
        >>> report.findings[0].code, report.findings[0].layer.endswith("train.py:1")
        ('BN401', True)

    A rule that cannot be sure says "maybe" and is a note, or is silent. `# noqa` or `# noqa: BN403`
    at the end of a line silences it. The same rules are a flake8 plugin.

    Args:
        path: a file, or a folder with all `.py` files under it.

    Returns:
        A report as from `diagnose`; a finding's `.layer` is `file:line`, `.layers` the files.

    Raises:
        BatchNormError: nothing there, a folder without Python files, a single file that is no Python.
    """
    path = Path(path)
    if not path.exists():
        raise BatchNormError(f"path must be a Python file or a folder; there is none at {path}")
    evidence = SourceEvidence(path)
    if path.is_file():
        findings = _read(path, evidence, alone=True)
        if evidence.unreadable:
            raise BatchNormError(f"path must be Python source; {path} is not: {evidence.unreadable[str(path)]}")
    else:
        files = sorted(path.rglob("*.py"))
        if not files:
            raise BatchNormError(f"path must hold Python source; there is no .py file under {path}")
        findings = [finding for file in files for finding in _read(file, evidence)]
    order = ("error", "warning", "note")
    return Report(SourceSubject(evidence), sorted(findings, key=lambda finding: order.index(finding.severity)))


def _read(file: Path, evidence: SourceEvidence, alone: bool = False) -> list[Finding]:
    """The findings of a file; of many, those without a word of batch norm are not parsed, which takes the time."""
    try:
        if file.stat().st_size > LARGEST:
            evidence.unreadable[str(file)] = "larger than 2 MB"
            return []
        with tokenize.open(file) as stream:
            text = stream.read()
        concerned = any(word in text for word in WORDS)
        source = Source.parse(text, str(file)) if concerned or alone else None
        evidence.files[str(file)] = text.count("\n") + 1
        return [] if source is None or not concerned else check(source)
    except (SyntaxError, ValueError, RecursionError, OSError, MemoryError) as error:
        evidence.unreadable[str(file)] = _why(error)
        return []


def _why(error: Exception) -> str:
    """Python's own message with its line, where there is one."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError) or (isinstance(error, SyntaxError) and "encoding" in str(error)):
        return f"no text in the encoding it declares, or in UTF-8 ({error})"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(error) if isinstance(error, SyntaxError | ValueError) else "nested too deeply to be parsed"
