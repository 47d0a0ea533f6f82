"""Which parameters of a test run every time; the slow suite runs the others."""

import pytest


def slow_but(values, keep):
    """The values as parameters, of which those that `keep` chooses run by default: a collection, or a function."""
    keeps = keep if callable(keep) else keep.__contains__
    return [value if keeps(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]


def every(step, values):
    """The values as parameters, of which every `step`th runs by default."""
    return [pytest.param(v, marks=pytest.mark.slow) if i % step else v for i, v in enumerate(values)]
