"""Every pain has a row, a test and a place in the documentation; each test fails once its feature is switched off."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from tests.loading import load
from tests.pains.table import ROWS, STATES, collected, outcome, switch_off

DOCS = Path(__file__).parents[2] / "docs"
PAINS = collected()


def test_every_row_is_there_once_and_few_are_out_of_reach():
    assert [p.row for p in PAINS] == list(range(1, ROWS + 1))
    assert sum(p.state == "out of reach" for p in PAINS) <= 5


@pytest.mark.parametrize("pain", PAINS, ids=lambda p: f"pain_{p.row:02}")
def test_a_row_says_what_a_reader_looks_for(pain):
    assert pain.test.__name__.startswith(f"test_pain_{pain.row:02}_")
    assert pain.state in STATES
    assert re.fullmatch(
        r"https://(github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+|discuss\.pytorch\.org/\S+)", pain.thread
    )
    page, _, anchor = pain.page.partition("#")
    assert (DOCS / page).exists()
    assert not anchor or f"#{anchor} }}" in (DOCS / page).read_text()
    assert "|" not in pain.symptom + pain.peer + pain.here


@pytest.mark.parametrize("pain", PAINS, ids=lambda p: f"pain_{p.row:02}")
def test_its_line_of_code_uses_what_there_is(pain):
    ast.parse(pain.here)
    named = re.findall(r"batchnorm(?:\.\w+)+", pain.here)
    assert named or pain.state == "out of reach"
    for dotted in named:
        found, *path = dotted.split(".")
        module = importlib.import_module(found)
        for name in path:
            if not hasattr(module, name):
                importlib.import_module(f"{module.__name__}.{name}")
            module = getattr(module, name)


def test_the_page_is_what_the_rows_say():
    assert load(DOCS / "pains.py").page(PAINS) == (DOCS / "pains.md").read_text(), "run: python docs/pains.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the frameworks warn of their own deprecations
@pytest.mark.parametrize(
    ("pain", "name"),
    [pytest.param(p, name, id=f"pain_{p.row:02}-{name}") for p in PAINS for name in p.without],
)
def test_without_a_feature_its_test_fails(pain, name, monkeypatch, request):
    switch_off(name, monkeypatch.setattr)
    outcome.cache_clear()
    given = {fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(pain.test).parameters}
    try:
        with pytest.raises((*pain.fails_with, pytest.fail.Exception)):
            pain.test(**given)
    finally:
        outcome.cache_clear()
