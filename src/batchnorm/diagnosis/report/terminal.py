"""A report in the terminal: the verdict, the tables and the findings, as rich shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from batchnorm.diagnosis.report.subject import Table
from batchnorm.models.tables import LayerTable

if TYPE_CHECKING:
    from batchnorm.diagnosis.report.report import Report

STYLE = {"error": "red", "warning": "yellow", "note": "dim"}


def parts(report: Report) -> Iterator[RenderableType]:
    """From the verdict down to the findings."""
    yield Text(report.headline(), style="bold")
    for table in report.subject.tables():
        yield _shown(table)
        if table.caption:
            yield Text(table.caption, style="dim")
    yield from _findings(report)


def _shown(table: Table) -> LayerTable:
    # Of layers, or of files and conditions in words.
    names = table.header[0] in ("layer", "file")
    texts = [index for index, heading in enumerate(table.header) if heading == "why" or (not index and not names)]
    return LayerTable(table.header, table.rows, table.title, names=(0,) if names else (), texts=texts)


def _findings(report: Report) -> Iterator[RenderableType]:
    """Paragraphs, for a fix is to be copied whole and a column would break it."""
    for code, severity, where, message, fix, tried in report.grouped():
        yield Text.assemble("\n", (f"{code} {severity}", STYLE[severity]), f"  {where}")
        yield Padding(Text(message), (0, 0, 0, 2))
        if tried:
            yield Padding(Text(tried), (0, 0, 0, 2))
        yield Text(f"  fix: {fix}", style="bold", no_wrap=True, overflow="ignore")
