"""Bytes to a file, all or nothing."""

from __future__ import annotations

from pathlib import Path

from batchnorm.files import write_atomically


def write_bytes(path: Path, data: bytes) -> Path:
    """Write the data beside its place and rename it there; the path."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)
    return path
