"""The gallery: each failure is real, named first, and its proposed fix, carried out, brings the metric back."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from gallery import CASES, HEALTHY


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_named_first_and_repaired_by_its_fix(case):
    report, before, after = case.run()
    first = report.findings[0]
    assert first.code == case.code, [(f.code, f.message) for f in report.findings]
    assert case.fix in first.fix
    assert not before > after - 0.05
    if 0 <= after <= 1:
        assert after > 0.85


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm(name):
    report = HEALTHY[name]()
    assert [(f.code, f.layer, f.message) for f in report.findings if f.severity != "note"] == []


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 25
    assert len(HEALTHY) >= 10
