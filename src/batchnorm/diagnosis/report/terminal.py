"""A report in the terminal: the verdict, the tables and the findings, as rich shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
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
    if report.findings:
        yield _findings(report)


def _numbers(table: Table) -> RichTable:
    made = RichTable(table.header[0], title=table.title, title_justify="left")
    for heading in table.header[1:]:
        made.add_column(heading, justify="right")
    for row in table.rows:
        made.add_row(*map(Text, row))
    return made


def _findings(report: Report) -> RichTable:
    where = "where" if report.subject.kind == "source" else "layer"
    table = RichTable("code", where, "what and why", "fix", title="findings", title_justify="left")
    for code, severity, layers, message, fix in report.grouped():
        table.add_row(Text(code, style=STYLE[severity]), Text(layers), Text(message), Text(fix))
    return table
