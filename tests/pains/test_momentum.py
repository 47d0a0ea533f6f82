"""What the word momentum means, and when it should change."""

import math

import pytest
import torch
from torch import nn

import batchnorm
from gallery.common import X, network, norms
from tests.pains.table import outcome, pain


@pain(
    43,
    "The momentum should change during training",
    state="prevented",
    peer="a function of the step as momentum is a TypeError at the first forward; every project has a hack",
    here="batchnorm.BatchNorm2d(64, momentum=lambda step: 0.5 / step)",
    thread="https://github.com/keras-team/keras/issues/12230",
    page="choices.md",
    without="batchnorm.BatchNorm1d",
    fails_with=TypeError,
)
def test_pain_43_a_momentum_schedule():
    def halved(step):
        return 0.5 ** torch.as_tensor(step)

    with pytest.raises(TypeError):
        nn.BatchNorm1d(64, momentum=halved)(X[:8])
    layer = batchnorm.BatchNorm1d(64, momentum=halved)
    expected = torch.zeros(64)
    for step, part in enumerate(X[:96].split(32), start=1):
        layer(part)
        expected = (1 - 0.5**step) * expected + 0.5**step * part.mean(0)
    assert torch.allclose(layer.running_mean, expected, atol=1e-6)
    layer.momentum = 0.25  # and a plain attribute from here on
    layer(X[:32])
    assert torch.allclose(layer.running_mean, 0.75 * expected + 0.25 * X[:32].mean(0), atol=1e-6)


@pain(
    44,
    "momentum=None is misread: taken for 0.0, or 0.0 for it",
    state="prevented",
    peer="None is the cumulative average, 0.0 stores nothing at all; 1.5 and -0.2 are accepted silently",
    here="batchnorm.BatchNorm2d(64, estimator=batchnorm.layers.Cumulative())",
    thread="https://github.com/Lightning-AI/pytorch-lightning/issues/14866",
    page="findings.md#bn107",
    without=("batchnorm.BatchNorm1d", "batchnorm.recalibrate"),
)
def test_pain_44_no_momentum_misread():
    parts = (X[:96] + 1).split(32)
    layers = {
        "None": nn.BatchNorm1d(64, momentum=None),
        "zero": nn.BatchNorm1d(64, momentum=0.0),
        "wild": nn.BatchNorm1d(64, momentum=1.5),
        "named": batchnorm.BatchNorm1d(64, estimator=batchnorm.layers.Cumulative()),
    }
    for layer in layers.values():
        for part in parts:
            layer(part)
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    assert torch.allclose(layers["None"].running_mean, mean, atol=1e-6)
    assert (layers["zero"].running_mean == 0).all()
    assert layers["wild"].running_var.min() < 0.2  # the weight of what was is -0.5
    assert torch.allclose(layers["named"].running_mean, mean, atol=1e-6)
    for wrong in (1.5, -0.2, math.nan, "none"):
        with pytest.raises(batchnorm.BatchNormError, match=r"momentum must be in \[0, 1\]"):
            batchnorm.BatchNorm1d(64, momentum=wrong)
        with pytest.raises(batchnorm.BatchNormError, match=r"momentum must be in \[0, 1\]"):
            batchnorm.LazyBatchNorm1d(momentum=wrong)
    report, before, after = outcome("no_momentum_misread")
    assert report.findings[0].code == "BN107"
    assert before < after - 0.05
    assert all(layer.momentum == 0.1 for layer in norms(network()))
