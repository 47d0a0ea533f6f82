"""What the package says about the rebuilt reports.

    PYTHONPATH=src:benchmarks python -m judgement.reports.run --json FILE [name ...]

Written are the findings in order, and for a model the metric before, after the first fix that is code, and after the
statistics of the training data. Whether that solves the report is judged by reading, in `verdicts.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import batchnorm
from judgement.reports.threads import THREADS, Thread
from judgement.run import execute, mean, outputs


def said(report: Any) -> list[dict[str, Any]]:
    """The findings, in order."""
    keys = ("code", "severity", "layer", "message", "fix", "tried")
    return [{key: getattr(finding, key) for key in keys} for finding in report.findings]


def answer(thread: Thread) -> dict[str, Any]:
    """One report."""
    torch.manual_seed(0)
    made = thread.build()
    if thread.tool == "watch":
        with batchnorm.watch(made["model"], made["optimizer"]) as report:
            made["run"]()
        return {"findings": said(report)}
    if thread.tool in ("inspect", "lint"):
        with tempfile.TemporaryDirectory() as folder:
            if thread.tool == "lint":
                path = Path(folder, "code.py")
                path.write_text(made["code"])
                return {"findings": said(batchnorm.lint(path))}
            torch.save(made["state"], Path(folder, "model.pt"))
            return {"findings": said(batchnorm.inspect_checkpoint(Path(folder, "model.pt")))}
    made = {"eval_loader": None, **made}
    report = batchnorm.diagnose(
        made["model"], made["loader"], made["metric"], eval_loader=made["eval_loader"], progress=False
    )
    found: dict[str, Any] = {"findings": said(report), "passes": round(report.evidence.passes, 1)}
    test = made["eval_loader"] or made["loader"]
    found["before"] = round(mean(outputs(made["model"], test, made["metric"])), 4)
    fix = next((f.fix for f in report.findings if f.fix), None)
    fixed = execute(fix, made) if fix else None
    if fixed is not None:
        found["after"] = round(mean(outputs(fixed, test, made["metric"])), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for thread in THREADS:
        name = thread.build.__name__
        if options.names and name not in options.names:
            continue
        try:
            row = answer(thread)
        except Exception as failure:
            row = {"findings": [], "crash": repr(failure)[:300]}
        rows.append({"name": name, "thread": thread.address, "tool": thread.tool, **row})
        print(json.dumps(rows[-1], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
