"""What the oldest torch that is supported cannot read in a compiled graph stands nowhere in a layer."""

import ast
from pathlib import Path

import pytest

import batchnorm

ROOT = Path(batchnorm.__file__).parent
FILES = sorted(path for folder in ("layers", "kernels") for path in (ROOT / folder).rglob("*.py"))


def unions(source):
    """Lines with `isinstance(x, A | B)`, at which dynamo of torch 2.5 stops."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    named = (node for node in calls if getattr(node.func, "id", "") == "isinstance")
    return [node.lineno for node in named if isinstance(node.args[1], ast.BinOp)]


def test_a_union_is_found():
    assert unions("x = 1\nisinstance(x, int | str)\nisinstance(x, (int, str))") == [2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_union_in_isinstance(path):
    assert not unions(path.read_text())
