"""Writes the choices of every method into its card and into the overview, from the package's own table.

    python docs/tables.py

A page holds the place between `<!-- choices -->` and `<!-- /choices -->`; the tests check that it is up to date.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import batchnorm
from batchnorm.layers import METHODS

FOLDER = Path(__file__).parent / "methods"
CHOICES = ("extent", "estimator", "coupling", "inference", "policy")
_PLAIN = {"BatchCoupling": "batch", "Batch": "batch", "Stored": "stored", "Policy": "default"}
_MAIN = ("decay", "size", "window", "r_max", "d_max", "weight")
_PLACE = re.compile(r"(<!-- choices -->\n).*?(<!-- /choices -->)", re.S)


def short(choice: Any) -> str:
    """A choice as one would write it: the class, its main arguments, and what differs from its defaults."""
    kind = type(choice)
    default = kind(weight=0.0) if kind is batchnorm.layers.Mixture else kind()
    names = [field.name for field in fields(choice) if field.init]
    shown = [name for name in names if name in _MAIN]
    shown += [name for name in names if name not in _MAIN and getattr(choice, name) != getattr(default, name)]
    if kind.__name__ in _PLAIN and not shown:
        return _PLAIN[kind.__name__]
    return f"`{kind.__name__}({', '.join(f'{name}={getattr(choice, name)!r}' for name in shown)})`"


def row(name: str) -> str:
    """The five choices of a method as table cells."""
    return " | ".join(short(getattr(METHODS[name], choice)) for choice in CHOICES)


def overview() -> str:
    """One line a method."""
    head = f"| method | {' | '.join(CHOICES)} |\n|{'---|' * 6}\n"
    lines = (f"| [{name}]({name}.md): {line} | {row(name)} |\n" for name, line in batchnorm.methods().items())
    return head + "".join(lines)


def card(name: str) -> str:
    """The choices of one method."""
    return f"| {' | '.join(CHOICES)} |\n|{'---|' * 5}\n| {row(name)} |\n"


def filled(page: Path) -> str:
    """The page's text with its choices up to date."""
    table = overview() if page.stem == "index" else card(page.stem)
    return _PLACE.sub(lambda place: place[1] + table + place[2], page.read_text())


def pages() -> list[Path]:
    """The overview and the card of every method."""
    return [FOLDER / "index.md", *(FOLDER / f"{name}.md" for name in METHODS)]


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path))
