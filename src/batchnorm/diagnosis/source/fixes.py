"""Fixes that can be applied: replacements of a span of source, or of whole lines, shown as a diff first."""

from __future__ import annotations

import difflib
from typing import NamedTuple


class Edit(NamedTuple):
    """New text for a span: lines from 1, columns in UTF-8 bytes as `ast` counts them."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


def apply(text: str, edits: list[Edit]) -> str:
    """The text with the edits made, the last one first; of two that overlap, the earlier one."""
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    last: tuple[int, int] | None = None
    for edit in sorted(set(edits), key=lambda e: (e.line, e.column), reverse=True):
        if last is not None and (edit.end_line, edit.end_column) > last:
            continue
        head, tail = lines[edit.line - 1][: edit.column], lines[edit.end_line - 1][edit.end_column :]
        lines[edit.line - 1 : edit.end_line] = [head + edit.text.encode() + tail]
        last = (edit.line, edit.column)
    return b"".join(lines).decode()


def difference(path: str, old: str, new: str) -> str:
    """A unified diff."""
    return "".join(difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), path, path))
