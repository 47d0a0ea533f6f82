"""Where a run's numbers go: JSON lines, or anything with TensorBoard's `add_scalar`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchnorm.arguments import told
from batchnorm.diagnosis.report.report import finite
from batchnorm.diagnosis.run.evidence import Point
from batchnorm.errors import BatchNormError, check
from batchnorm.files import check_writable

Sink = Callable[[int, Mapping[str, Point]], None]


def a_sink(name: str, value: Any) -> None:
    """A path, or what has TensorBoard's `add_scalar`."""
    if not hasattr(value, "add_scalar") or isinstance(value, type):
        legal = isinstance(value, str | Path) and bool(str(value))
        check(legal, name, "a path or an object with add_scalar, as a SummaryWriter has", told(value))


def open_sink(to: Any) -> tuple[Sink, Callable[[], None]]:
    """A function that takes the points of a step, and one that ends it."""
    if to is None:
        return lambda step, points: None, lambda: None
    if hasattr(to, "add_scalar"):
        return _tensorboard(to), lambda: None
    return _json_lines(Path(to))


def _json_lines(path: Path) -> tuple[Sink, Callable[[], None]]:
    check_writable(path, "to")
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise BatchNormError(f"to must be a file that can be written; {path} cannot: {error.strerror}") from error

    def write(step: int, points: Mapping[str, Point]) -> None:
        layers = {name: {k: v for k, v in asdict(point).items() if k != "step"} for name, point in points.items()}
        file.write(json.dumps(finite({"step": step, "layers": layers})) + "\n")
        file.flush()

    return write, file.close


def _tensorboard(writer: Any) -> Sink:
    def write(step: int, points: Mapping[str, Point]) -> None:
        for name, point in points.items():
            for key, value in asdict(point).items():
                if key != "step" and value is not None:
                    writer.add_scalar(f"batchnorm/{name or 'root'}/{key}", value, step)

    return write
