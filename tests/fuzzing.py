"""Randomised tests: a seeded tenth of their cases in the slow suite and in CI, all, newly drawn, by `make fuzz`."""

import os

import pytest
from hypothesis import HealthCheck, settings

WHOLE = os.environ.get("BATCHNORM_FUZZ") == "whole"


def cases(whole):
    """How many of so many cases are to run."""
    return whole if WHOLE else max(1, whole // 10)


def chosen(whole):
    """The settings of a hypothesis test that has so many cases; the tenth is the same in every run."""
    health = list(HealthCheck)
    return settings(max_examples=cases(whole), deadline=None, suppress_health_check=health, derandomize=not WHOLE)


def fuzz(whole):
    """Mark a hypothesis test that has `whole` cases."""
    return lambda test: pytest.mark.fuzz(chosen(whole)(test))
