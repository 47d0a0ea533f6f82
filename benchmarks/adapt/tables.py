"""The tables of the documentation, from the JSON beside this script."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

Rows = list[dict[str, Any]]


def by_kind(rows: Rows, names: list[str]) -> str:
    """Mean error over severities and seeds."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = [f"| error, % | {' | '.join(kinds)} | mean |", "|---|" + "---:|" * (len(kinds) + 1)]
    for name in names:
        cells = [mean(r["errors"][name] for r in rows if r["kind"] == kind) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(f'{c:.1f}' for c in cells)} | {mean(cells):.1f} |")
    return "\n".join(lines)


def averages(rows: Rows) -> dict[str, float]:
    """Of each choice, over all rows."""
    return {name: mean(row["errors"][name] for row in rows) for name in rows[0]["errors"]}


def worst(rows: Rows, name: str) -> tuple[float, float, str]:
    """How much worse than doing nothing: one run, and the mean over seeds of a corruption at a severity."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        gaps[f"{row['kind']} {row['severity']} {row['stream']}"].append(row["errors"][name] - row["errors"]["stored"])
    where = max(gaps, key=lambda key: mean(gaps[key]))
    return max(max(g) for g in gaps.values()), mean(gaps[where]), where


def main() -> None:
    """Print them."""
    for data in ("digits", "fashion"):
        path = Path(__file__).with_name(f"{data}.json")
        rows = sorted(json.loads(path.read_text())["rows"], key=lambda r: (r["kind"] != "clean", r["kind"]))
        print(f"\n# {data}, {len({r['seed'] for r in rows})} seeds, {len(rows)} rows")
        for stream in ("mixed", "sorted"):
            part = [row for row in rows if row["stream"] == stream]
            print(f"\n## {stream} stream\n")
            print(by_kind(part, list(part[0]["errors"])))
        for label, part in (
            ("mixed", [r for r in rows if r["stream"] == "mixed"]),
            ("sorted", [r for r in rows if r["stream"] == "sorted"]),
            ("all", rows),
        ):
            found = averages(part)
            fixed = {k: v for k, v in found.items() if not k.startswith("auto")}
            at_hand = {k: v for k, v in fixed.items() if not k.startswith("domain")}
            for title, group in (("fixed", fixed), ("fixed, not domain", at_hand)):
                best = min(group, key=lambda k: group[k])
                print(f"\n{label}: best {title} choice {best} {group[best]:.2f}")
            for name in (k for k in found if k.startswith("auto")):
                run, cell, where = worst(part, name)
                print(f"{label}: {name} {found[name]:.2f}; than stored at most {run:+.1f} (run), {cell:+.1f} ({where})")


if __name__ == "__main__":
    main()
