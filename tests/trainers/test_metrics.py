"""Metrics for diagnose."""

import math

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop.trainers.torchmetrics import as_metric
from tests.trainers.networks import DATA, LABELS, network

BATCHES = list(zip(DATA.split(24), LABELS.split(24), strict=True))


def by_hand(model, batches):
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).double().mean() for x, y in batches]
    return float(torch.stack(right).mean())


def test_a_torchmetrics_metric():
    torchmetrics = pytest.importorskip("torchmetrics")
    model = network()
    metric = torchmetrics.Accuracy("multiclass", num_classes=3)
    metric.update(torch.eye(3), torch.tensor([0, 1, 0]))
    report = batchnorm.diagnose(model, BATCHES, as_metric(metric))
    found = report.to_dict()["metric"]
    assert found["stored"] == pytest.approx(by_hand(model, BATCHES))
    assert float(metric.compute()) == pytest.approx(2 / 3)  # mine is not touched
    batchnorm.recalibrate(model, DATA.split(24))
    assert found["recalibrated"] == pytest.approx(by_hand(model, BATCHES))


def test_a_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    several = torchmetrics.MetricCollection(
        {
            "top": torchmetrics.Accuracy("multiclass", num_classes=3, average="micro"),
            "f1": torchmetrics.F1Score("multiclass", num_classes=3),
        }
    )
    x, y = torch.eye(3), torch.tensor([0, 1, 0])
    assert as_metric(several, key="top")(x, (None, y)) == pytest.approx(2 / 3)
    with pytest.raises(BatchNormError, match="key must be one of 'f1', 'top'; it was None"):
        as_metric(several)(x, (None, y))


def test_plain_functions_and_places():
    loss = as_metric(nn.functional.cross_entropy, target="labels", output="logits")
    value = loss({"logits": torch.zeros(2, 4)}, {"labels": torch.tensor([1, 2])})
    assert value == pytest.approx(math.log(4))
    total = as_metric(lambda output, target: (output - target).sum(), target=lambda batch: batch.sum())
    assert total(torch.tensor(5.0), torch.ones(2)) == 3.0
    with pytest.raises(BatchNormError, match="target must be in a tuple; 3 is not"):
        as_metric(nn.functional.cross_entropy, target=3)(torch.zeros(1, 2), (1, 2))
