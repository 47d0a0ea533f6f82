"""Lint code that is given as text."""

import ast
from pathlib import Path

from batchnorm.diagnosis.source.check import Located, check
from batchnorm.diagnosis.source.config import Config
from batchnorm.diagnosis.source.project import Project


def located(files: dict[str, str], config: Config | None = None) -> list[Located]:
    """What is found in a program of several files, of which no rule may fail."""
    project = Project(Path("/program"))
    for name, text in files.items():
        project.add(Path("/program") / name, text, ast.parse(text))
    failed: dict[str, str] = {}
    said = check(project, config, failed)
    assert failed == {}
    return said


def found(text: str, **others: str) -> list[tuple[str, str]]:
    """Code and severity of each finding, of one file, and of more by their module names."""
    files = {"code.py": text, **{f"{name}.py": more for name, more in others.items()}}
    return [(f.finding.code, f.finding.severity) for f in located(files)]
