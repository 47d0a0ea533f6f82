"""The rules as a flake8 plugin, so that editors show them: entry point `BN4`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import ClassVar

from batchnorm.diagnosis.source.rules import check
from batchnorm.diagnosis.source.syntax import Source


class Plugin:
    """What flake8 calls with a file's tree and lines."""

    name: ClassVar[str] = "batchnorm"
    version: ClassVar[str] = "0.1.0"

    def __init__(self, tree: ast.Module, lines: list[str]) -> None:
        self.source = Source.of(tree, "".join(lines), "file")

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Line, column, text and class, as flake8 wants them."""
        for finding in check(self.source):
            line = int(finding.layer.rsplit(":", 1)[1])
            yield line, 0, f"{finding.code} {finding.message}; {finding.fix}", type(self)
