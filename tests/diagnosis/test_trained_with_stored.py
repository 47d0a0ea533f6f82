"""BN130: weights that fit a new layer's 0 and 1, and what tells it from an accident."""

import dataclasses

import pytest
import torch

import batchnorm
from batchnorm.diagnosis.rules import bn130_trained_with_stored as rule
from batchnorm.diagnosis.rules.examples import batches, network, norms, squared_error


@pytest.fixture(scope="module")
def report():
    """Weights that answered with 0 and 1 stored, recalibrated since."""
    model = network()
    for layer in norms(model):
        layer.reset_running_stats()
    with torch.no_grad():
        loader = [(x, model.eval()(x)) for x in batches()]
    batchnorm.recalibrate(model, batches(), progress=False)
    return batchnorm.diagnose(model, loader, squared_error, progress=False)


def test_new_statistics_are_the_cause_where_they_bring_the_answers_back(report):
    first = report.findings[0]
    assert first.code == "BN130"
    assert "with 0 and 1" in first.message
    assert report.evidence.new_statistics.after == 0


@pytest.mark.parametrize(
    ("new", "stored", "found"),
    [
        (rule.KNOWS + 1e-9, 0.0, True),
        (rule.KNOWS, 0.0, False),
        (1.0, rule.LOST, True),
        (1.0, rule.LOST + 1e-9, False),
    ],
)
def test_it_takes_a_distance_from_guessing_that_the_stored_ones_do_not_reach(report, new, stored, found):
    known = {rule.NEW: new, "stored": stored}
    evidence = dataclasses.replace(report.evidence, knows=known.__getitem__)
    assert (rule.with_new_statistics(evidence) is not None) == found
