"""A piece of a page with `{}` where a figure stands, and for each figure a file, a path in it and a format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"\{\}")
# What stands for a figure in a page; a table may hold "12 300", with the spaces of thousands.
NUMBER = r"(-?\d[\d,]*(?: \d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)"


class Figure(NamedTuple):
    """One figure: where it lies, and how it is written.

    A step of a path is a key, an index, or a dict, which selects the rows with these values.
    """

    file: str
    path: tuple[Any, ...]
    form: str = ".2f"
    how: Callable[[Any], float] = lambda value: value

    def text(self) -> str:
        """As the page should have it."""
        value = self.how(_at(read(self.file), self.path))
        if value == 0 and self.form.endswith("e"):
            return "0"
        return format(value, (".1f" if value >= 1 else ".2f") if self.form == "two digits" else self.form)


class Claim(NamedTuple):
    """A piece of a page, and the figures in it."""

    page: str
    text: str
    figures: tuple[Figure, ...]

    def pattern(self) -> re.Pattern[str]:
        """What finds it, wherever its lines break."""
        pieces = [re.sub(r"(?:\\ |\\\n|\s)+", r"\\s+", re.escape(piece)) for piece in PLACE.split(self.text)]
        return re.compile(NUMBER.join(pieces))

    def wrong(self, text: str) -> list[tuple[str, str]]:
        """The figures in the page that are not the file's, with the file's; all of them if the words are not there."""
        found = self.pattern().findall(text)
        if len(found) != 1:
            return [(f"{len(found)} places with these words", figure.text()) for figure in self.figures]
        have = found[0] if isinstance(found[0], tuple) else (found[0],)
        return [(old, new.text()) for old, new in zip(have, self.figures, strict=True) if old != new.text()]

    def put(self, text: str) -> str:
        """The page with the file's figures."""
        found = self.pattern().search(text)
        if found is None:
            return text
        for group, figure in reversed(list(enumerate(self.figures, 1))):
            text = text[: found.start(group)] + figure.text() + text[found.end(group) :]
        return text


@cache
def read(file: str) -> Any:
    """A file of the benchmarks."""
    return json.loads((ROOT / "benchmarks" / file).read_text())


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        if isinstance(step, dict):
            value = [row for row in value if all(row[key] == wanted for key, wanted in step.items())]
            value = value[0] if len(value) == 1 else value
        elif isinstance(value, list) and isinstance(step, str):
            value = [row[step] for row in value]
        else:
            value = value[step]
    return value
