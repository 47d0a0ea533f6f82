"""The verb: read Python files, interpret them as one program, report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.arguments import a_path_or_paths, arguments, some_names
from batchnorm.diagnosis.findings import Finding
from batchnorm.diagnosis.report import Report
from batchnorm.diagnosis.report.subject import Table
from batchnorm.diagnosis.source import fixes
from batchnorm.diagnosis.source.check import check, uncollected
from batchnorm.diagnosis.source.config import codes, load
from batchnorm.diagnosis.source.files import SourceFile, parse, read
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.project import Project
from batchnorm.errors import BatchNormError
from batchnorm.files import write_atomically
from batchnorm.models.batches import counted

# A file without any of these says nothing about batch norm and holds nothing that another file would need.
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
    "BN",
    ".eval()",
    ".train()",
    "nn.Module",
    "torch.nn",
    "momentum",
    "resnet",
    "ResNet",
    "models.",
    "DataLoader",
    "add_argument",
    "import *",
    "trainable",
    "models import",
    "model import",
    "networks import",
    "import models",
    "import networks",
    "__main__",
    "getattr(module",
    "rainer import",
)
SKIPPED = ("node_modules", "site-packages", "__pycache__", "venv", "env")


@dataclass
class SourceEvidence:
    """The files read, lines each, those not read whole, where rules failed, other places of findings, and edits."""

    path: Path
    files: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    also: dict[str, list[str]] = field(default_factory=dict)  # the other places of a finding, by its own and its code
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict, repr=False)

    def fixed(self) -> dict[str, str]:
        """The new text of each file that a fix changes; a text that would not parse is not offered."""
        found = {}
        for path, edits in self.edits.items():
            new = fixes.apply(self.texts[path], edits)
            if parse(SourceFile(Path(path), new)).problem == "":
                found[path] = new
        return found

    def difference(self) -> str:
        """What `fix` would change, as a unified diff."""
        return "".join(fixes.difference(path, self.texts[path], new) for path, new in self.fixed().items())

    def fix(self) -> int:
        """Write the fixed files, each one atomically; how many."""
        changed = self.fixed()
        for path, new in changed.items():
            write_atomically(path, lambda temporary, new=new: _write(temporary, new))
        return len(changed)


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
        skipped = f", {len(e.unreadable)} not parsed whole" if e.unreadable else ""
        skipped += f", {len(e.failed)} not checked by all rules" if e.failed else ""
        return f"{counted(len(e.files), 'file')}, {counted(sum(e.files.values()), 'line')}{skipped}"

    def tables(self) -> list[Table]:
        """Files that could not be parsed, and files where a rule failed."""
        e = self.evidence
        held = {"not parsed whole": e.unreadable, "not checked by all rules": e.failed}
        return [Table(title, ["file", "why"], [list(row) for row in of.items()]) for title, of in held.items() if of]

    def as_dict(self) -> dict[str, Any]:
        """Counts."""
        e = self.evidence
        return {
            "path": str(e.path),
            "files": len(e.files),
            "lines": sum(e.files.values()),
            "unreadable": e.unreadable,
            "failed": e.failed,
            "also": e.also,
            "fixable": {path: len(edits) for path, edits in e.edits.items()},
        }

    def page(self) -> dict[str, Any]:
        """Nothing is drawn."""
        return {"metric": [], "layers": [], "bar": "", "unit": ""}


@arguments(path=a_path_or_paths, select=some_names, ignore=some_names)
def lint(path: str | Path | Sequence[str | Path], *, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> Report:
    """Find misuse of batch norm's running statistics in Python source; nothing is imported or run.

    Example:
        >>> import tempfile, pathlib, batchnorm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "train.py"
        ...     _ = file.write_text("bn.running_mean = 0.9 * bn.running_mean + 0.1 * bn.running_mean")
        ...     report = batchnorm.lint(file)
        >>> report.findings[0].code, report.findings[0].layer.endswith("train.py:1")
        ('BN401', True)

    The files are read as one program: names, modes and calls are followed from file to file. A rule that
    cannot be sure says "maybe" and is a note, or is silent. `# noqa` or `# noqa: BN403` at the end of a
    line silences it; `[tool.batchnorm.lint]` in pyproject.toml selects. The same rules are a flake8 plugin.

    Args:
        path: a file, a folder with all `.py` files under it, or several.
        select: codes, or their beginnings, to report; all of them by default.
        ignore: codes, or their beginnings, not to report.

    Returns:
        A report as from `diagnose`; a finding's `.layer` is `file:line`, `.layers` the files, and
        `.evidence.difference()` and `.evidence.fix()` show and make the fixes that are certain.

    Raises:
        BatchNormError: nothing there, a folder without Python files, a single file that is no Python,
            an unknown code, a pyproject.toml that cannot be read.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    if not paths:
        raise BatchNormError("path must be a Python file or a folder; it was empty")
    config = load(paths[0])
    select, ignore = codes(list(select), "select"), codes(list(ignore), "ignore")
    config.select, config.ignore = select or config.select, config.ignore + ignore
    evidence = SourceEvidence(paths[0])
    root = paths[0] if paths[0].is_dir() else paths[0].parent if len(paths) == 1 else None
    project = Project(root)
    with uncollected():
        for file in _files(paths):
            _take(file, project, evidence, alone=len(paths) == 1 and paths[0].is_file())
        located = check(project, config, evidence.failed)
    for found in located:
        if found.others:
            evidence.also[f"{found.path}:{found.line} {found.finding.code}"] = [f"{p}:{n}" for p, n in found.others]
        if found.edits and found.path not in evidence.unreadable:
            evidence.edits.setdefault(found.path, []).extend(found.edits)
    evidence.texts = {path: _text(path) for path in evidence.edits}
    order = ("error", "warning", "note")
    findings: list[Finding] = [found.finding for found in located]
    return Report(SourceSubject(evidence), sorted(findings, key=lambda finding: order.index(finding.severity)))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _text(path: str) -> str:
    """A file's text with its line ends."""
    with open(path, encoding="utf-8", newline="") as stream:
        return stream.read()


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BatchNormError(f"path must be a Python file or a folder; there is none at {path}")
        if path.is_file():
            found.append(path)
            continue
        inside = [f for f in sorted(path.rglob("*.py")) if f.is_file() and not _skipped(f.relative_to(path))]
        if not inside:
            raise BatchNormError(f"path must hold Python source; there is no .py file under {path}")
        found.extend(inside)
    return list(dict.fromkeys(found))


def _skipped(inner: Path) -> bool:
    return any(part in SKIPPED or part.startswith(".") for part in inner.parts[:-1])


def _take(path: Path, project: Project, evidence: SourceEvidence, alone: bool) -> None:
    """Read a file into the project; of many, those that cannot concern batch norm are not parsed."""
    file = read(path)
    if not file.problem:
        if alone or path.name == "__init__.py" or any(word in file.text for word in WORDS):
            parse(file)
        if file.tree is not None:
            project.add(path, file.text, file.tree)
    if file.problem:
        evidence.unreadable[str(path)] = file.problem
        if alone and (file.tree is None or file.lost):
            raise BatchNormError(
                f"path must be Python source; {path} is not: {file.problem.split('; read without')[0]}"
            )
    if (file.text and (file.tree is not None or not file.problem)) or not file.problem:
        evidence.files[str(path)] = file.lines
