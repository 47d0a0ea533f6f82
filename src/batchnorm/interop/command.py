"""The body of `batchnorm translate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from batchnorm.errors import BatchNormError
from batchnorm.interop.translating import Translation, translate


def run(source: Path, target: Path, map_file: Path | None, as_json: bool, **choices: Any) -> Translation:
    """Translate a file into another and print what was done.

    Raises:
        BatchNormError: see `translate`; a map that is not a JSON object of names.
    """
    choices["flatten"] = dict(_shape(text) for text in choices.get("flatten") or [])
    mapping = None if map_file is None else load_map(map_file)
    result = translate(source, target, map=mapping, **choices)
    if as_json:
        layers = [row._asdict() for row in result.layers]
        settings = {n: {"eps": e, "momentum": m} for n, (e, m) in result.settings.items()}
        print(
            json.dumps({"out": str(target), "layers": layers, "batch_norm": settings, "notes": result.notes}, indent=2)
        )
    else:
        Console().print(result)
        Console().print(f"wrote {target}", soft_wrap=True)
    return result


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """A layer and a shape from NAME=C,H,W."""
    name, sign, numbers = text.rpartition("=")
    try:
        return (name if sign else text), tuple(int(n) for n in (numbers if sign else "").split(","))
    except ValueError as error:
        raise BatchNormError(f"--flatten must be NAME=C,H,W, such as fc=64,7,7; it was {text!r}") from error


def load_map(path: Path) -> dict[str, str]:
    """The names of layers in a JSON file, {source: target}.

    Raises:
        BatchNormError: not such a file.
    """
    try:
        loaded: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BatchNormError(f"--map must be a JSON file; {path} could not be read as one: {error}") from error
    if not isinstance(loaded, dict) or not all(isinstance(v, str) for v in loaded.values()):
        raise BatchNormError(f"--map must hold an object {{source layer: target layer}}; {path} holds something else")
    return loaded
