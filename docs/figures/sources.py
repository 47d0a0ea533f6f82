"""Figures that have neither a claim nor a command nor a source."""

from __future__ import annotations

import re
from collections.abc import Iterable

from docs.figures.claim import ROOT, Claim

# A figure with a unit in a sentence, or with decimals in a cell of a table.
MEASURED = re.compile(
    r"(?<![\w.`^-])\d[\d,.]*(?: ?(?:%|ms|s|MB|MiB|GB|kB|ns)(?!\w)| (?:\w+seconds|seconds|minutes|points|times))"
    r"|(?<=\| )\d[\d ]*\.\d+(?: ± [\d.]+)?(?= )"
)
COMMAND = re.compile(r"(?:benchmarks|examples|docs|tests)/[\w/]+(?:\.py)?|make [a-z-]+|`\w+\.py`")
# Figures that nobody measures here: thresholds, definitions, examples. By page, words of their paragraphs.
STATED = {
    "README.md": ("A C++ compiler builds",),
    "docs/findings.md": ("",),  # thresholds, and made from the rules
    "docs/eval-is-bad.md": ("`(1 - momentum)^steps` above 1 %",),
    "docs/explorer.md": ("95 % of such lines", "After 40 steps 67 %", "0.9^19 = 14 %"),
    "docs/how-it-works.md": ("After t batches",),
    "docs/interop.md": ("3 % at n = 32", "0.155 too large"),
    "docs/kernels.md": ("Outputs of 8 MB and more",),
    "docs/lint.md": ("0.9 or more", "0.2 or less"),
    "docs/allocators.md": ("up to 32 MiB", "heaps of 64 MiB"),
    "docs/recalibrate.md": (
        "at most 25 times",
        "512 MiB",
        "95 % limits",
        "half of a 95 % interval",
        "50 times the time",
        "0.5 %",
    ),
    "docs/report.md": ("the time allows", "below 2 MB"),
    "docs/choices.md": ("",),  # worked out from the formulas beside them
    "docs/many-processes.md": ("waited 5 s for its sum", "for its sum;", "for the others;"),
}


def unsourced(page: str, given: Iterable[Claim]) -> list[str]:
    """Paragraphs of a page with a figure that has no claim, no command in its section and no link."""
    text = (ROOT / page).read_text()
    for claim in given:
        if claim.page == page:
            text = claim.pattern().sub(lambda found: re.sub(r"\d", "", found[0]), text)
    intro, *sections = re.split(r"^## ", text, flags=re.M)
    found = []
    for section in [intro] if COMMAND.search(intro) else [intro, *sections]:
        if COMMAND.search(section):
            continue
        prose = re.sub(r"```.*?```", "", section, flags=re.S)
        for paragraph in re.split(r"\n\n|\n(?=- |\|)", prose):
            exempt = re.search(r"http|\]\[", paragraph) or any(
                _words(s) in _words(paragraph) for s in STATED.get(page, ())
            )
            if MEASURED.search(paragraph) and not exempt:
                found.append(_words(paragraph))
    return found


def _words(text: str) -> str:
    return " ".join(text.split()).lower()
