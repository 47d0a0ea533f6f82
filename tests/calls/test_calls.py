"""Wrong calls of every public verb: one clear sentence each, and nothing is changed."""

import re
import sys
import warnings

import pytest

from batchnorm.errors import BatchNormError
from tests.calls import good
from tests.calls.outcome import outcome
from tests.calls.verbs import VERBS

PAIRS = [
    pytest.param(verb, argument, label, id=f"{verb.name}-{argument}-{label}".replace(" ", "_"))
    for verb in VERBS
    for argument, values in verb.kinds.items()
    for label in values
]


@pytest.fixture(autouse=True)
def _libraries(monkeypatch):
    for name, module in good.libraries().items():
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, module)
    with warnings.catch_warnings():
        # Of torch, about what is wrong.
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name.replace(" ", "_"))
def test_the_call_works_as_it_should_be(verb):
    verb.call(**{name: value() for name, value in verb.given.items()})


@pytest.mark.parametrize(("verb", "argument", "label"), PAIRS)
def test_a_wrong_call_is_one_sentence_and_changes_nothing(verb, argument, label):
    found = outcome(verb, argument, verb.kinds[argument][label])
    if f"{argument}: {label}" in verb.legal:
        assert found.error is None
        return
    assert isinstance(found.error, BatchNormError), repr(found.error)
    said = str(found.error)
    assert re.search(verb.says.get(argument, argument), said), said
    assert "\n" not in said
    assert len(said) <= 500
    assert found.changed == []
