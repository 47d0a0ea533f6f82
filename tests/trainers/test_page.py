"""The blocks of docs/trainers.md run, each after the first, and say what they need."""

import os
import re

import pytest

from tests.trainers.page import BLOCKS, FIRST, PAGE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", BLOCKS)
def test_blocks_run(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(FIRST.code, "first", "exec"), names)
    exec(compile(BLOCKS[library].code, library, "exec"), names)
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("library", [name for name in BLOCKS if name != "torch"])
def test_a_block_says_how_its_library_is_installed_in_the_version_that_was_run(library):
    pins = dict(re.findall(r"([\w-]+)==([\d.]+)", BLOCKS[library].install))
    assert library in pins
    constraints = (PAGE.parents[1] / "constraints.txt").read_text()
    for package, version in pins.items():
        assert f"\n{package.replace('_', '-')}=={version}\n" in constraints
