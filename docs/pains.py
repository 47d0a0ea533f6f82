"""Writes docs/pains.md from the tests in tests/pains: `python docs/pains.py`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

HEAD = """# {count} problems with running statistics

These are the problems with running statistics that users report most often, in the issue trackers of many projects.
Each has a test, `test_pain_NN` in `tests/pains/`, which reproduces it in torch 2.13.0 (or in the tool named) and checks
what this package does about it. {tally}.

- **prevented**: with the line of code in the row, the problem does not occur.
- **repaired**: a model that has the problem is corrected.
- **diagnosed**: the report names the problem, its cause and its fix.

For each row, a slow test disables the feature and checks that the row's test then fails. The rows of Keras, Flax and
Opacus run in `make test-interop`. The link to a thread is an example; most problems have many.

| | problem | | without this package | with it | thread | details |
|---|---|---|---|---|---|---|
"""
OPEN = """
## What remains

"""


def thread(url: str) -> str:
    """A link to a thread, named as its project names it."""
    found = re.match(r"https://github\.com/[^/]+/([^/]+)/(?:issues|pull)/(\d+)", url)
    return f"[{found[1]} {found[2]}]({url})" if found else f"[forum]({url})"


def page(pains: Sequence[Any]) -> str:
    """The whole page."""
    counts = Counter(p.state for p in pains)
    states = ("prevented", "repaired", "diagnosed", "out of reach")
    tally = ", ".join(f"{counts[state]} are {state}" for state in states if counts[state])
    rows = [
        f"| {p.row} | {p.symptom} | {p.state} | {p.peer} | `{p.here}` | {thread(p.thread)} | [page]({p.page}) |\n"
        for p in pains
    ]
    left = [f"- {p.row}: {p.limit}\n" for p in pains if p.limit]
    return HEAD.format(count=len(pains), tally=tally) + "".join([*rows, OPEN, *left])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.pains.table import collected

    (ROOT / "docs" / "pains.md").write_text(page(collected()))
