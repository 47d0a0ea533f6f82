# ruff: noqa: E501
"""The tutorial's recipe in twelve spellings, each with the sentence that says what is wrong, and eleven sound look-alikes."""

import pytest

from tests.diagnosis.source.read_code import found, located
from tests.diagnosis.source.recipes import HEAD, SOUND, SPELLINGS


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_recipe_is_found_in_every_spelling(name):
    findings = located({"code.py": HEAD + SPELLINGS[name]})
    assert {(f.finding.code, f.finding.severity) for f in findings} == {("BN401", "warning")}
    said = "running statistics are mixed with themselves: m * r + (1 - m) * r is r, so nothing changes"
    assert all(f.finding.message.startswith(said) for f in findings)
    after_eval = "eval()" in SPELLINGS[name]
    assert all(("after eval() no forward moves them either" in f.finding.message) == after_eval for f in findings)


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_that_looks_like_it_is_not(name):
    assert found(HEAD + SOUND[name]) == []
