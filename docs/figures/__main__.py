"""Compare the pages with the files of the benchmarks, or fill the files' figures in.

python -m docs.figures            # the sentences whose figures are not those of the JSON, and what they should say
python -m docs.figures --write    # puts the figures of the JSON into the pages
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from docs.figures.claim import ROOT, Claim
from docs.figures.table import claims


def differences(given: Iterable[Claim]) -> list[str]:
    """A line for each claim whose figures are not the file's."""
    lines = []
    for claim in given:
        wrong = claim.wrong((ROOT / claim.page).read_text())
        if wrong:
            listed = ", ".join(f"{old} -> {new}" for old, new in wrong)
            lines.append(f"{claim.page}: {claim.text.strip()!r}: {listed} (benchmarks/{claim.figures[0].file})")
    return lines


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        for one in claims():
            (ROOT / one.page).write_text(one.put((ROOT / one.page).read_text()))
    print("\n".join(differences(claims())) or "Every figure is that of its file.")
