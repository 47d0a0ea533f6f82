"""How often the diagnosis is right: situations, seeds, and what is scored.

    PYTHONPATH=src:benchmarks python -m judgement.run [--module judgement.broken] [--seeds 5] [--json FILE] [name ...]

Any module with a list SITUATIONS of objects with name, kind ("broken", "other gap", "healthy"), code and
make(seed) can be scored. A finding above a note is an alarm. A printed fix that is code is executed on a copy and
judged on held-out data; one that is advice alone is compared with doing nothing. A kind fails if one seed in five does.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import batchnorm

MODULES = ("judgement.broken", "judgement.other_gap", "judgement.healthy")
NEAR = 0.02  # of the metric, from the oracle
HARM = 0.01
SURE = 2.6


def outputs(model: Any, loader: Any, metric: Any) -> list[tuple[float, int]]:
    """The metric of every sample where that works, else of every batch."""
    found = []
    model.eval()
    with torch.no_grad():
        for batch in loader:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            output = model(x)
            size = len(x)
            try:
                parts = [metric(_row(output, i), _row(batch, i)) for i in range(size)]
                whole = metric(output, batch)
                if abs(sum(map(float, parts)) / size - float(whole)) > 1e-4 * (1 + abs(float(whole))):
                    raise ValueError
                found += [(float(p), 1) for p in parts]
            except Exception:
                found.append((float(metric(output, batch)), size))
    return found


def _row(value: Any, index: int) -> Any:
    if torch.is_tensor(value):
        return value[index : index + 1]
    return type(value)(_row(v, index) for v in value)


def mean(units: list[tuple[float, int]]) -> float:
    return sum(v * n for v, n in units) / sum(n for _, n in units)


def error(a: list[tuple[float, int]], b: list[tuple[float, int]]) -> float:
    """Of the paired difference."""
    if len(a) != len(b) or len(a) < 2:
        return math.inf
    weights = torch.tensor([n for _, n in a], dtype=torch.float64)
    d = torch.tensor([y - x for (x, _), (y, _) in zip(a, b, strict=True)], dtype=torch.float64)
    centre = (d * weights).sum() / weights.sum()
    return float((weights.square() * (d - centre).square()).sum().sqrt() / weights.sum())


def execute(fix: str, made: dict[str, Any]) -> Any:
    """The model after the printed fix; None where it is advice and no code."""
    try:
        code = compile(fix, "fix", "exec")
    except SyntaxError:
        return None
    model = copy.deepcopy(made["model"])
    space = {"model": model, "loader": made["loader"], "eval_loader": made["eval_loader"], "batchnorm": batchnorm}
    try:
        exec(code, {**space, "torch": torch})
    except Exception as failure:
        print(f"  the fix failed: {fix}: {failure!r}", file=sys.stderr)
        return None
    return model


def score(situation: Any, seed: int) -> dict[str, Any]:
    """One case."""
    made = {"eval_loader": None, "metric": None, "oracle": None, **situation.make(seed)}
    torch.manual_seed(seed)
    start = time.perf_counter()
    row: dict[str, Any] = {"name": situation.name, "kind": situation.kind, "seed": seed}
    try:
        report = batchnorm.diagnose(
            copy.deepcopy(made["model"]), made["loader"], made["metric"], eval_loader=made["eval_loader"],
            higher_is_better=None if made["metric"] is None else True, progress=False,
        )  # fmt: skip
    except Exception as failure:
        return {**row, "crash": repr(failure)[:300], "alarm": situation.kind != "broken"}
    above = [f for f in report.findings if f.severity != "note"]
    row |= {
        "seconds": round(time.perf_counter() - start, 2),
        "passes": round(report.evidence.passes, 1),
        "alarm": bool(above),
        "codes": [f"{f.code}:{f.severity}" for f in report.findings][:6],
        "first": report.findings[0].code if report.findings else None,
        "message": report.findings[0].message[:300] if report.findings else None,
        "tried": report.findings[0].tried if report.findings else None,
        "fix": report.findings[0].fix if report.findings else None,
    }
    if situation.kind == "broken":
        row["named"] = row["first"] in situation.code
    if made["metric"] is not None:
        row |= judge_fix(made, row["fix"], situation)
    return row


def judge_fix(made: dict[str, Any], fix: str | None, situation: Any) -> dict[str, Any]:
    """The printed fix on held-out data, beside doing nothing and the oracle."""
    metric, test = made["metric"], made["test_loader"]
    before = outputs(copy.deepcopy(made["model"]), test, metric)
    found: dict[str, Any] = {"before": round(mean(before), 4)}
    fixed = execute(fix, made) if fix else None
    found["executed"] = fixed is not None
    after = before if fixed is None else outputs(fixed, test, metric)
    found["after"] = round(mean(after), 4)
    lost = mean(before) - mean(after)
    found["harms"] = lost > max(HARM, SURE * error(before, after)) if fixed is not None else False
    if made["oracle"] is not None:
        best = mean(outputs(made["oracle"](copy.deepcopy(made["model"])), test, metric))
        found["oracle"] = round(best, 4)
        found["near"] = mean(after) >= best - NEAR
    return found


def wrong(row: dict[str, Any]) -> bool:
    """Whether anything in a case is not as it should be."""
    if row.get("crash") or row.get("harms"):
        return True
    return row["alarm"] if row["kind"] != "broken" else not (row["alarm"] and row["named"] and row.get("near", True))


def interval(good: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    if not total:
        return 0.0, 1.0
    z, p = 1.96, good / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return round(centre - half, 3), round(centre + half, 3)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Cases and kinds: a kind is good if more than four fifths of its seeds are."""
    figures = {
        "broken: above a note": ("broken", lambda r: r["alarm"]),
        "broken: cause named first": ("broken", lambda r: r.get("named")),
        "broken: fix within 2 points of the oracle": ("broken", lambda r: r.get("near")),
        "no fix harms": (None, lambda r: None if "harms" not in r else not r["harms"]),
        "healthy: silent": ("healthy", lambda r: not r["alarm"]),
        "other gap: silent": ("other gap", lambda r: not r["alarm"]),
        "no crash": (None, lambda r: "crash" not in r),
    }
    found = {}
    for name, (kind, good) in figures.items():
        by_kind: dict[str, list[bool]] = {}
        for row in rows:
            value = good(row) if kind in (None, row["kind"]) else None
            if value is not None:
                by_kind.setdefault(row["name"], []).append(bool(value))
        cases = [v for values in by_kind.values() for v in values]
        kinds = [sum(values) > 0.8 * len(values) for values in by_kind.values()]
        found[name] = {
            "cases": f"{sum(cases)} of {len(cases)}", "interval": interval(sum(cases), len(cases)),
            "kinds": f"{sum(kinds)} of {len(kinds)}", "kinds interval": interval(sum(kinds), len(kinds)),
            "failing": [name for name, values in by_kind.items() if not sum(values) > 0.8 * len(values)],
        }  # fmt: skip
    passes = [row["passes"] for row in rows if "passes" in row]
    found["most passes"] = max(passes, default=None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--module", action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for module in options.module or MODULES:
        for situation in import_module(module).SITUATIONS:
            if options.names and situation.name not in options.names:
                continue
            for seed in range(options.first, options.first + options.seeds):
                try:
                    row = score(situation, seed)
                except Exception as failure:
                    print(f"{situation.name} could not be made: {failure!r}", file=sys.stderr)
                    continue
                rows.append(row)
                print("BAD" if wrong(row) else "ok ", json.dumps(row), flush=True)
    found = {"figures": summary(rows), "rows": rows}
    print(json.dumps(found["figures"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
