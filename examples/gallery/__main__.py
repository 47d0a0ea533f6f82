"""Run the gallery: `PYTHONPATH=examples python -m gallery [NAME ...]` prints what each script shows."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from gallery import CASES


def main(names: list[str]) -> None:
    """A row a script: the failure, what is named first, and the metric before and after the fix."""
    table = Table("script", "what happens", "first finding", "fix")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for case in CASES:
        if not names or case.name in names:
            report, before, after = case.run()
            first = report.findings[0]
            table.add_row(case.name, case.about, first.code, first.fix, f"{before:.3f}", f"{after:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
