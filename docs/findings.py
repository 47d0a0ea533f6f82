"""Writes findings.md from the rules: each one's page is its docstring, with the thresholds it uses.

    python docs/findings.py

A rule that has no page of its own yet keeps the text that stands here; the tests check that the file is up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from batchnorm.diagnosis import RULES, Rule

FILE = Path(__file__).parent / "findings.md"
SIDES = {"model": "A live model", "checkpoint": "A checkpoint", "run": "A run", "source": "Source code"}
PREFIX = {"1": "model", "2": "checkpoint", "3": "run", "4": "source"}
HEAD = """# Findings

What each code means, the thresholds it uses, and the fix. Codes are stable. BN1xx come from a live model
(`diagnose`), BN2xx from a checkpoint (`inspect_checkpoint`), BN3xx from a run (`watch`), BN4xx from source
code (`lint`). Drift is the distance between stored and actual mean in units of `sqrt(running_var + eps)`,
root mean square over channels. Errors and warnings make `.ok` false and the command's exit code 1; notes do
not.

Of a live model a finding is an error or a warning where harm was measured: recalibrating, tried and put back, makes the
metric better by more than 2 % of its distance to guessing and by more than 2.6 standard errors of the paired
difference; without a metric, it changes the output by more than 10 % and three times what sampling alone does.
Otherwise the same finding is a note. The first finding is the cause: the one that explains most of the gap, causes
before symptoms where they explain the same.
"""


def section(rule: Rule, old: dict[str, str]) -> str:
    """One rule's section."""
    head = f"### {rule.code} {rule.title} {{ #{rule.code.lower()} }}\n"
    if not rule.page:
        return head + old.get(rule.code, "")
    fix = re.sub(r" {2}# ", "`: ", rule.fix, count=1)
    shown = f"Fix: `{rule.fix}`." if fix == rule.fix else f"Fix: `{fix}."
    code = "batchnorm." in rule.fix.split("#")[0] and "{" not in rule.fix
    said = shown if code else f"Fix: {rule.fix}." if rule.fix and "{" not in rule.fix else ""
    return f"{head}{rule.severity.capitalize()}. {rule.page}\n" + (f"\n{said}\n" if said else "")


def text() -> str:
    """The whole file."""
    parts = re.split(r"^### (BN\d+) .*\n", FILE.read_text(), flags=re.M)
    old = {
        code: re.split(r"^## ", body, flags=re.M)[0].strip() + "\n"
        for code, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    found = HEAD
    for side, title in SIDES.items():
        found += f"\n## {title}\n"
        for rule in RULES:
            if PREFIX[rule.code[2]] == side:
                found += "\n" + section(rule, old)
    return found


if __name__ == "__main__":
    FILE.write_text(text())
