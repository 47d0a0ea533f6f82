"""Writes docs/pains.md from the tests in tests/pains: `python docs/pains.py`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

HEAD = """# What goes wrong, and where it ends here

{count} things that people report about running statistics, over and over, in the trackers of many projects. Each has a
test, `test_pain_NN` in `tests/pains/`: it reproduces the failure in torch 2.13.0 (or in the tool named), with values,
and then shows what this package does about it. {tally}.

- **prevented**: with the line of code in the row it does not happen.
- **repaired**: the model that has it is put right.
- **diagnosed**: it is named, with its cause and its fix.

The slow tests switch each feature off and ask that its test fail. Rows of Keras, Flax and Opacus run in
`make test-interop`. Thread links are examples; most rows have many.

| | what happens | | today | here | thread | read |
|---|---|---|---|---|---|---|
"""
OPEN = """
## What stays open

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
