"""From results to the table in docs/torch-tests.md and the lines about single tests below it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.torch_suite.reasons import reason_for

START, END = "<!-- results: written by python -m tests.torch_suite -->", "<!-- end of results -->"
Results = Mapping[str, Mapping[str, Any]]


def failures(stock: Results | None, ours: Results) -> dict[str, tuple[str, str | None]]:
    """Tests that pass on torch's classes and not on ours: message and reason. Without stock results, all that fail."""
    expected = ours if stock is None else [test for test, result in stock.items() if result["outcome"] == "passed"]
    found = {}
    for test in expected:
        result = ours.get(test, {"outcome": "missing", "why": "not collected"})
        allowed = ("passed",) if stock is not None else ("passed", "skipped")
        if result["outcome"] not in allowed:
            found[test] = (result["why"], reason_for(test, result["why"]))
    return found


def row(name: str, stock: Results | None, ours: Results) -> str:
    """One line of the table."""
    outcomes = Counter(result["outcome"] for result in ours.values())
    failed = failures(stock, ours)
    explained = sum(reason is not None for _, reason in failed.values())
    passing = "not possible" if stock is None else sum(r["outcome"] == "passed" for r in stock.values())
    made = len(ours if stock is None else stock)
    return f"| {name} | {made} | {passing} | {outcomes['passed']} | {explained} | {len(failed) - explained} |"


def page(runs: Mapping[str, tuple[Results | None, Results]]) -> str:
    """The table, then every failure by its reason."""
    lines = [
        "| file | tests that make a layer | pass on torch's | pass on ours | cannot apply | faults |",
        "|---|---|---|---|---|---|",
        *(row(name, *results) for name, results in runs.items()),
    ]
    by_reason: dict[str, list[str]] = {}
    for stock, ours in runs.values():
        for test, (message, reason) in failures(stock, ours).items():
            said = reason or "Fault: " + " ".join(message.split())[:120].replace("|", "/")
            by_reason.setdefault(said, []).append(test)
    for reason, tests in by_reason.items():
        names = ", ".join(f"`{test.split('::')[-1]}`" for test in tests)
        lines += ["", f"**{reason}.** {len(tests)}: {names}"]
    return "\n".join(lines)


def write(docs: Path, runs: Mapping[str, tuple[Results | None, Results]]) -> None:
    """Put the results between the marks of the page."""
    text = docs.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    docs.write_text(f"{before}{START}\n\n{page(runs)}\n\n{END}{after}")
