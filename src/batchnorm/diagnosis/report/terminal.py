"""A report in the terminal: the verdict, the tables and the findings, as rich shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from batchnorm.diagnosis.report.subject import Table

if TYPE_CHECKING:
    from batchnorm.diagnosis.report.report import Report

STYLE = {"error": "red", "warning": "yellow", "note": "dim"}


def parts(report: Report) -> Iterator[RenderableType]:
    """From the verdict down to the findings."""
    yield Text(report.headline(), style="bold")
    for table in report.subject.tables():
        yield _numbers(table)
        if table.caption:
            yield Text(table.caption, style="dim")
    yield from _findings(report)


def _numbers(table: Table) -> RichTable:
    made = RichTable(title=table.title, title_justify="left")
    for index, heading in enumerate(table.header):
        # Broken, not cut: what a narrow terminal has no room for goes on the next line.
        made.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, row))
    return made


def _findings(report: Report) -> Iterator[RenderableType]:
    """Paragraphs, for a fix is to be copied whole and a column would break it."""
    for code, severity, where, message, fix, tried in report.grouped():
        yield Text.assemble("\n", (f"{code} {severity}", STYLE[severity]), f"  {where}")
        yield Padding(Text(message), (0, 0, 0, 2))
        if tried:
            yield Padding(Text(tried), (0, 0, 0, 2))
        yield Text(f"  fix: {fix}", style="bold", no_wrap=True, overflow="ignore")
