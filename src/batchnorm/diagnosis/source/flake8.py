"""The rules as a flake8 plugin, so that editors show them: entry point `BN4`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from batchnorm.diagnosis.source.check import check
from batchnorm.diagnosis.source.project import Project


class Plugin:
    """What flake8 calls with a file's tree and lines; it sees one file at a time, so names from others stay unknown."""

    name: ClassVar[str] = "batchnorm"
    version: ClassVar[str] = next((found.version for found in metadata.distributions(name="batchnorm")), "unknown")

    def __init__(self, tree: ast.Module, lines: list[str], filename: str = "file.py") -> None:
        self.project = Project()
        self.project.add(Path(Path(filename).name or "file.py"), "".join(lines), tree)

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Line, column, text and class, as flake8 wants them."""
        failed: dict[str, str] = {}
        for found in check(self.project, failed=failed):
            for _, line in ((found.path, found.line), *found.others):
                yield line, 0, f"{found.finding.code} {found.text}; {found.finding.fix}", type(self)
        for why in failed.values():
            yield 1, 0, f"BN400 not checked: {why}", type(self)
