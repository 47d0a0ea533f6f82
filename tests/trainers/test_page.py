"""The blocks of docs/trainers.md run, each after the first."""

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
FIRST, *BLOCKS = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.S)
NAMES = ["lightning", "transformers", "accelerate", "torch", "timm", "schedulefree", "ultralytics", "monai"]
NAMES += ["torch_geometric", "torchmetrics", "tensorboard"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("block", "library"), list(zip(BLOCKS, NAMES, strict=True)), ids=NAMES)
def test_blocks_run(block, library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(FIRST, "first", "exec"), names)
    exec(compile(block, library, "exec"), names)
    assert os.getcwd() == str(tmp_path)
