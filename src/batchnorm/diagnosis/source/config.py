"""What to report: `[tool.batchnorm.lint]` of the nearest pyproject.toml, and what the command line says."""

from __future__ import annotations

import contextlib
import fnmatch
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.errors import BatchNormError, check

KEYS = ("select", "ignore", "per-file-ignores")


@dataclass
class Config:
    """Codes to report; a code may be the beginning of several, `BN4` for all."""

    select: tuple[str, ...] = ("BN4",)
    ignore: tuple[str, ...] = ()
    per_file: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None

    def wanted(self, code: str, path: str) -> bool:
        """Whether a code is reported for a file."""
        if not code.startswith(self.select) or (self.ignore and code.startswith(self.ignore)):
            return False
        return not any(
            code.startswith(codes) and self._matches(path, pattern) for pattern, codes in self.per_file.items()
        )

    def _matches(self, path: str, pattern: str) -> bool:
        """A pattern of per-file-ignores, against the name and against the path from the configuration's folder."""
        inner = path
        if self.folder is not None:
            with contextlib.suppress(ValueError):
                inner = Path(path).resolve().relative_to(self.folder.resolve()).as_posix()
        return any(fnmatch.fnmatch(name, pattern) for name in (inner, Path(path).name))


def load(path: Path) -> Config:
    """The configuration that holds for a path: the first pyproject.toml upwards that has a table for it."""
    start = path.resolve()
    for folder in (start, *start.parents) if start.is_dir() else start.parents:
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("batchnorm", {}).get("lint")
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
            raise BatchNormError(f"{file} must be TOML; it is not: {error}") from None
        if table is not None:
            return _read(table, file)
    return Config()


def _read(table: dict[str, Any], file: Path) -> Config:
    for key in table:
        check(key in KEYS, f"a key of [tool.batchnorm.lint] in {file}", f"one of {', '.join(KEYS)}", repr(key))
    per_file = table.get("per-file-ignores", {})
    check(isinstance(per_file, dict), f"per-file-ignores in {file}", "a table of patterns and codes", repr(per_file))
    return Config(
        codes(table.get("select", ["BN4"]), f"select in {file}"),
        codes(table.get("ignore", []), f"ignore in {file}"),
        {pattern: codes(value, f"per-file-ignores in {file}") for pattern, value in per_file.items()},
        file.parent,
    )


def codes(value: object, name: str) -> tuple[str, ...]:
    """A list of codes or beginnings of codes, checked against those that exist."""
    from batchnorm.diagnosis.source.rules import LOOKS

    listed = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    check(listed, name, "a list of codes such as 'BN405'", repr(value))
    for code in value:  # pyright: ignore[reportGeneralTypeIssues]
        known = bool(code) and any(known.startswith(code) for known in LOOKS)
        check(known, name, "made of codes such as 'BN405', or their beginnings, such as 'BN4'", repr(code))
    return tuple(value)  # pyright: ignore[reportArgumentType]
