"""The blocks of docs/trainers.md, each with the install lines that stand above it in its section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


class Block(NamedTuple):
    """Lines for a shell, empty where nothing is to install, and the code that runs after them."""

    install: str
    code: str


_NAMES = ("lightning", "transformers", "accelerate", "torch", "timm", "schedulefree", "ultralytics", "monai")
_NAMES += ("torch_geometric", "torchmetrics", "tensorboard")
_FOUND = re.findall(r"(?:```sh\n([^`]*)```\n(?:(?!```|\n## ).)*)?```py\n(.*?)```", PAGE.read_text(), re.S)
FIRST, *_OTHERS = (Block(*found) for found in _FOUND)
BLOCKS: dict[str, Block] = dict(zip(_NAMES, _OTHERS, strict=True))
