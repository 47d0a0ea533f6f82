"""`# noqa` as flake8 reads it: any case, blanket or with codes, for the whole logical line.

flake8 itself takes `BN4` for all codes that begin with it; here a code names itself alone.
"""

from __future__ import annotations

import io
import re
import tokenize

INLINE = re.compile(r"# noqa(?::[\s]?(?P<codes>(?:[A-Z]+[0-9]+(?:[,\s]+)?)+))?", re.IGNORECASE)
FILE = re.compile(
    r"\s*# (?:flake8|ruff)[:=]\s*noqa(?P<codes>:\s?(?P<list>(?:[A-Z]+[0-9]+(?:[,\s]+)?)+))?\s*$", re.IGNORECASE
)
ALL: frozenset[str] = frozenset()


class Silenced:
    """Which codes a file's comments silence in which lines."""

    def __init__(self, text: str) -> None:
        self.lines: dict[int, frozenset[str]] = {}
        self.file: frozenset[str] | None = None
        if "noqa" not in text.lower():
            return
        for line in text.splitlines():
            found = FILE.match(line)
            if found:
                codes = _codes(found["list"])
                self.file = ALL if codes == ALL or self.file == ALL else codes | (self.file or frozenset())
        for first, last, comment in _logical_lines(text):
            found = INLINE.search(comment)
            if found:
                codes = _codes(found["codes"])
                for line in range(first, last + 1):
                    self.lines[line] = codes

    def __call__(self, line: int, code: str) -> bool:
        """Whether a code is silenced in a line."""
        return any(codes is not None and (codes == ALL or code in codes) for codes in (self.file, self.lines.get(line)))


def _codes(text: str | None) -> frozenset[str]:
    return ALL if text is None else frozenset(code.upper() for code in re.split(r"[,\s]+", text.strip()) if code)


def _logical_lines(text: str) -> list[tuple[int, int, str]]:
    """First line, last line and the comments of each logical line that has one."""
    found: list[tuple[int, int, str]] = []
    first, comments = 1, ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments += token.string + "\n"
            elif token.type in (tokenize.NEWLINE, tokenize.NL) and (
                token.type == tokenize.NEWLINE or not _open(token, first)
            ):
                if comments:
                    found.append((first, token.start[0], comments))
                first, comments = token.start[0] + 1, ""
    except (tokenize.TokenError, SyntaxError, IndentationError):
        lines = text.splitlines()
        found.extend((at, at, lines[at - 1]) for at in range(first, len(lines) + 1) if "#" in lines[at - 1])
    return found


def _open(token: tokenize.TokenInfo, first: int) -> bool:
    """Whether a line break is inside a statement: tokenize says NL there too, and for blank and comment lines."""
    stripped = token.line.strip()
    return not (stripped == "" or stripped.startswith("#")) or token.start[0] != first
