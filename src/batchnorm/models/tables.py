"""Tables of layers as every report prints them: whole where there is room, and never two layers under one name."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

CUT = "…"
_LEAST = 8  # columns for a name
_WORD = 24  # columns for a text, whose longer words are broken


def as_text(renderable: Any) -> str:
    """What rich would print, as plain text, as wide as the terminal or 100 columns where there is none."""
    # Rich draws numbers from Python's generator, which a training may use, when it is imported too.
    drawn = random.getstate()
    out = StringIO()
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    try:
        from rich.console import Console

        Console(file=out, width=width, color_system=None).print(renderable, crop=False)
    finally:
        random.setstate(drawn)
    return out.getvalue().rstrip()


def part_of(value: float, whole: str, digits: int = 1) -> str:
    """A ratio in words: `87.0% of the size`, and from above 200 percent on `3.1 times the size`; whole may be empty.

    Example:
        >>> part_of(0.5, "their size"), part_of(2.0, ""), part_of(3.14, "their size")
        ('50.0% of their size', '200.0%', '3.1 times their size')
    """
    if not round(100 * value, digits) > 200:
        return f"{value:.{digits}%}" + (f" of {whole}" if whole else "")
    factor = f"{value:,.1f}" if value < 10 else f"{value:,.0f}"
    return f"{factor} times" + (f" {whole}" if whole else "")


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most so many characters, all as different as before; longer ones where no cut leaves them so.

    Example:
        >>> shortened(["encoder.block1.norm", "encoder.block12.norm"], 14)
        ['…block1.norm', '…block12.norm']

    The same cut is made in all that are too long: at the front, in the middle, and last of all in each part of
    the path but the last, of which the first letter and the digits stay.
    """
    cuts: list[Callable[[str], str]] = []
    for whole in (str, _initials):
        cuts.append(lambda name, whole=whole: _without_front(whole(name), width))
        for head in range(width // 3, width - 1):
            cuts.append(lambda name, whole=whole, head=head: _without_middle(whole(name), width, head))
    different = len(set(names))
    for cut in cuts:
        found = [name if len(name) <= width else cut(name) for name in names]
        if len(set(found)) == different and max(map(len, found), default=0) <= width:
            return found
    found = [name if len(name) <= width else _initials(name) for name in names]
    return found if len(set(found)) == different else list(names)


def _without_front(name: str, width: int) -> str:
    """The end of a name, from a whole part on where that is not much less."""
    if len(name) <= width:
        return name
    end = name[len(name) - width + 1 :]
    dot = end.find(".")
    return CUT + (end[dot + 1 :] if 0 <= dot < width // 4 else end)


def _without_middle(name: str, width: int, head: int) -> str:
    return name if len(name) <= width else name[:head] + CUT + name[len(name) - (width - head - 1) :]


def _initials(name: str) -> str:
    """`features.denseblock1.blocks.10.norm` as `f.d1.b10.norm`."""
    *parts, last = name.split(".")
    short = [part[:1] + "".join(re.findall(r"\d+", part[1:])) for part in parts]
    return re.sub(r"(?<=[^\d.])\.(?=\d)", "", ".".join([*short, last]))


@dataclass
class LayerTable:
    """A table whose columns of names give way first; rich prints it as wide as the console is.

    names are the columns that hold paths of layers; texts those whose words may be broken into lines. All others hold
    numbers, which stand at the right and are never broken where there is room for them.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    caption: str | None = None
    names: Sequence[int] = (0,)
    texts: Sequence[int] = field(default_factory=tuple[int, ...])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """One of rich's tables."""
        from rich.table import Table
        from rich.text import Text

        # A space at either side of a cell, and a line between columns.
        inside = options.max_width - 3 * len(self.header) - 1
        rows = self._named(inside)
        widths = self._widths(rows, inside)
        table = Table(title=self.title, title_justify="left", caption=self.caption, caption_justify="left")
        if widths is None:
            # Without lines there is more room: a space after a cell.
            inside = options.max_width - len(self.header)
            rows = self._named(inside)
            widths = self._widths(rows, inside)
            table.box, table.padding = None, (0, 1, 0, 0)
        for index, heading in enumerate(self.header):
            left = index in self.names or index in self.texts
            width = None if widths is None else widths[index]
            table.add_column(heading, justify="left" if left else "right", overflow="fold", width=width)
        for row in rows:
            table.add_row(*map(Text, row))
        yield table

    def _named(self, inside: int) -> list[list[str]]:
        """The rows, with names that fit beside the other columns; a cell may hold several, a line each."""
        rows = [list(row) for row in self.rows]
        others = sum(_least(self._cells(rows, i), i in self.texts) for i in self._others)
        width = (inside - others) // max(1, len(self.names))
        if width < _LEAST:
            return rows
        for index in self.names:
            every = list(dict.fromkeys(name for row in rows for name in row[index].split("\n")))
            short = dict(zip(every, shortened(every, max(width, len(self.header[index]))), strict=True))
            for row in rows:
                row[index] = "\n".join(short[name] for name in row[index].split("\n"))
        return rows

    @property
    def _others(self) -> list[int]:
        return [index for index in range(len(self.header)) if index not in self.names]

    def _cells(self, rows: Sequence[Sequence[str]], index: int) -> list[str]:
        return [self.header[index], *(line for row in rows for line in row[index].split("\n"))]

    def _widths(self, rows: list[list[str]], inside: int) -> list[int] | None:
        """As wide as what is in them; less, down to the longest words and numbers, where that is too much in all."""
        cells = [self._cells(rows, index) for index in range(len(self.header))]
        widths = [max(map(len, column)) for column in cells]
        least = [
            w if i in self.names else _least(c, i in self.texts)
            for i, (w, c) in enumerate(zip(widths, cells, strict=True))
        ]
        if sum(least) > inside:
            return None  # a very narrow console: rich breaks what it must
        while sum(widths) > inside:
            # The one with most to give; its words go on the next line.
            index = max(range(len(widths)), key=lambda i: widths[i] - least[i])
            widths[index] -= 1
        return widths


def _least(column: Sequence[str], text: bool) -> int:
    """The width that a column needs: its longest word in the heading, and the longest number or word below."""
    heading, *cells = column
    if not text:
        return max(map(len, [*heading.split(), *cells]), default=0)
    return min(max(map(len, [*heading.split(), *(word for cell in cells for word in cell.split())]), default=0), _WORD)
