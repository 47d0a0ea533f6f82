"""Where a run's numbers go: JSON lines, or anything with TensorBoard's `add_scalar`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchnorm.diagnosis.report.report import finite
from batchnorm.diagnosis.run.evidence import Point
from batchnorm.errors import BatchNormError

Sink = Callable[[int, Mapping[str, Point]], None]


def open_sink(to: Any) -> tuple[Sink, Callable[[], None]]:
    """A function that takes the points of a step, and one that ends it."""
    if to is None:
        return lambda step, points: None, lambda: None
    if hasattr(to, "add_scalar"):
        return _tensorboard(to), lambda: None
    if isinstance(to, (str, Path)):
        return _json_lines(Path(to))
    raise BatchNormError(f"to must be a path or have add_scalar, as a SummaryWriter has; it was {type(to).__name__}")


def _json_lines(path: Path) -> tuple[Sink, Callable[[], None]]:
    if not path.parent.is_dir():
        raise BatchNormError(f"to must lie in an existing folder; there is none at {path.parent}")
    file = path.open("w", encoding="utf-8")

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
