"""Source files as text and tree, as far as they can be read."""

from __future__ import annotations

import ast
import re
import tokenize
import warnings
from dataclasses import dataclass, field
from pathlib import Path

LARGEST = 2_000_000  # bytes of a file
MOST_ERRORS = 20  # lines left out of a file before it is given up

# Python 2, line by line, so that line numbers stay.
CONTINUED = re.compile(r"^(\s*)print\s+(?![(=.>])(.*\\)\s*$")
HEAD = r"^(\s*(?:(?:if|for|while|else|elif|try|with)\b[^#'\"]*:\s*)?)print\s+"
PYTHON_2 = (
    (re.compile(HEAD + r">>\s*([^,]+),\s*(.*?)\s*,?\s*$"), r"\1print(\3, file=\2)"),
    (re.compile(HEAD + r"(?![=(.])(.*?)\s*,?\s*(#[^'\"]*)?$"), r"\1print(\2) \3"),
    (re.compile(r"^(\s*)print\s+(\(.*[^)\s].*)$"), r"\1print(\2)"),
    (re.compile(r"^(\s*)print\s*$"), r"\1print()"),
    (re.compile(r"^(\s*except\s+[\w.()]+(?:\s*,\s*[\w.]+\))?)\s*,\s*(\w+)\s*:"), r"\1 as \2:"),
    (re.compile(r"^(\s*raise\s+[\w.]+)\s*,\s*(.+)$"), r"\1(\2)"),
    (re.compile(r"^(\s*)exec\s+(?!\()(.+)$"), r"\1exec(\2)"),
    (re.compile(r"\basync\s*=(?!=)"), "async_="),
    (re.compile(r"(?<![\w.])(\d+)[lL]\b"), r"\1"),
    (re.compile(r"(?<![\w.])0([0-7]+)\b(?!\.)"), r"0o\1"),
    (re.compile(r"\bur(['\"])"), r"r\1"),
    (re.compile(r"<>"), "!="),
    (re.compile(r"`([^`]+)`"), r"repr(\1)"),
)  # fmt: skip


@dataclass
class SourceFile:
    """A file's text, its tree (None where there is none), and what could not be read of it."""

    path: Path
    text: str = ""
    tree: ast.Module | None = None
    problem: str = ""
    lost: list[int] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """How many lines it has."""
        return self.text.count("\n") + (not self.text.endswith("\n") and bool(self.text))


def read(path: Path) -> SourceFile:
    """A file's text; `problem` says why there is none."""
    try:
        if path.stat().st_size > LARGEST:
            return SourceFile(path, problem="larger than 2 MB")
        with tokenize.open(path) as stream:
            return SourceFile(path, stream.read())
    except (SyntaxError, ValueError) as error:
        return SourceFile(path, problem=f"no text in the encoding it declares, or in UTF-8 ({error})")
    except OSError as error:
        return SourceFile(path, problem=str(error.strerror or error))


def parse(file: SourceFile) -> SourceFile:
    """Fill in the tree: as it stands, else as Python 2, else without the lines that do not parse."""
    try:
        file.tree = _tree(file.text)
    except SyntaxError as error:
        file.problem = f"line {error.lineno}: {error.msg}" if error.lineno is not None else str(error)
        _repair(file)
    except (ValueError, RecursionError, MemoryError) as error:
        file.problem = str(error) if isinstance(error, ValueError) else "nested too deeply to be parsed"
    return file


def _tree(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _repair(file: SourceFile) -> None:
    """Python 2 becomes Python 3 line by line; a line that still does not parse becomes `pass`."""
    lines = [_as_python_3(line) for line in _joined_prints(file.text.expandtabs(8).splitlines())]
    for _ in range(MOST_ERRORS):
        try:
            file.tree = _tree("\n".join(lines) + "\n")
        except SyntaxError as error:
            at = error.lineno
            if at == len(lines) + 1 and len(lines) in file.lost:
                # What was left out was to have a body.
                lines.append(" " * 200 + "pass")
                continue
            if at is None or not 1 <= at <= len(lines) or at in file.lost:
                return
            file.lost.append(at)
            indent = len(lines[at - 1]) - len(lines[at - 1].lstrip())
            lines[at - 1] = " " * indent + ("if 1:" if lines[at - 1].rstrip().endswith(":") else "pass")
        except (ValueError, RecursionError, MemoryError):
            return
        else:
            if not file.lost:
                file.problem = f"Python 2 ({file.problem}), read as Python 3"
            else:
                left = ", ".join(map(str, sorted(file.lost)[:5])) + (" ..." if len(file.lost) > 5 else "")
                file.problem += f"; read without line {left}"
            return


def _joined_prints(lines: list[str]) -> list[str]:
    """A print statement that a backslash continues gets its brackets; the lines stay."""
    lines = list(lines)
    for at, line in enumerate(lines):
        found = CONTINUED.match(line)
        if found is not None:
            end = at
            while end + 1 < len(lines) and lines[end].rstrip().endswith("\\"):
                end += 1
            lines[at] = f"{found[1]}print({found[2]}"
            lines[end] = lines[end].rstrip() + ")"
    return lines


def _as_python_3(line: str) -> str:
    if line.lstrip().startswith("#"):
        return line
    for pattern, new in PYTHON_2:
        line = pattern.sub(new, line)
    return line
