"""The running statistics do not follow the weights, or never got far from their initial value."""

import copy

import torch
from torch import nn

import batchnorm
from gallery.common import X, Y, accuracy, batches, metric, network, norms, train
from tests.pains.table import outcome, pain


@pain(
    1,
    "Good in train(), bad in eval(), on the same data",
    state="repaired",
    peer="accuracy above 90 % in train mode and below 70 % in eval mode, on the same data, without a warning",
    here="print(batchnorm.diagnose(model, loader, metric)); batchnorm.recalibrate(model, loader)",
    thread="https://github.com/pytorch/pytorch/issues/4741",
    page="eval-is-bad.md",
    without=("batchnorm.diagnose", "batchnorm.recalibrate"),
)
def test_pain_01_great_in_train_terrible_in_eval():
    model = train(network(momentum=0.01), 600)
    train(model, 30, lr=0.2, seed=1)  # the weights move on, and the average has a horizon of 100 steps
    in_train = sum(metric(copy.deepcopy(model).train()(x), (x, y)) for x, y in batches()) / len(batches())
    assert in_train > 0.9
    in_eval = accuracy(model, X, Y)
    assert in_eval < 0.7
    report = batchnorm.diagnose(model, batches(), metric)
    assert [f.code for f in report.findings][:2] == ["BN104", "BN104"]
    assert max(row.drift for row in report.layers.values()) > 1
    batchnorm.recalibrate(model, batches())
    assert accuracy(model, X, Y) > in_train - 0.03
    assert batchnorm.diagnose(model, batches(), metric).ok


@pain(
    5,
    "Validation loss jumps though training is fine: momentum 0.99 of Keras and too few steps",
    state="repaired",
    peer="after 40 steps 67 % of the initial value is left, in Keras 3 and in torch with momentum=0.01",
    here='batchnorm.convert(model, "debiased")',
    thread="https://github.com/keras-team/keras/issues/10666",
    page="choices.md",
    without=("batchnorm.convert", "batchnorm.recalibrate"),
)
def test_pain_05_too_few_steps_for_the_momentum():
    x = X[:64, :1] * 4 + 3
    stock = nn.BatchNorm1d(1, momentum=0.01)
    debiased = batchnorm.convert(nn.Sequential(nn.BatchNorm1d(1, momentum=0.01)), "debiased")
    for _ in range(40):
        stock(x)
        debiased(x)
    assert abs(stock.running_mean - (1 - 0.99**40) * x.mean()) < 1e-5
    assert abs(debiased[0].running_mean - x.mean()) < 1e-5
    assert abs(debiased[0].running_var - x.var()) < 1e-5
    report, before, after = outcome("keras_default_and_few_steps")
    assert report.findings[0].code == "BN108"
    assert before < 0.92 < 0.96 < after


@pain(
    31,
    "In the first epochs eval is wrong, because statistics start at mean 0 and variance 1",
    state="prevented",
    peer="after t batches (1 - momentum)^t of the initial value is left: 73 % after 3",
    here='batchnorm.convert(model, "debiased")',
    thread="https://github.com/google/flax/issues/1360",
    page="methods/debiased.md",
    without="batchnorm.convert",
)
def test_pain_31_first_epochs():
    parts = (X[:192] * 3 + 2).split(64)
    stock, model = nn.BatchNorm1d(64), batchnorm.convert(nn.Sequential(nn.BatchNorm1d(64)), "debiased")
    for part in parts:
        stock(part)
        model(part)
    gains = torch.tensor([0.1 * 0.9**2, 0.1 * 0.9, 0.1])
    means = torch.stack([part.mean(0) for part in parts])
    assert torch.allclose(stock.running_mean, (gains[:, None] * means).sum(0), atol=1e-5)
    assert abs(stock.running_var[0] - 0.9**3) < 1e-4  # a constant pixel: all that is left of the initial 1
    weighted = (gains[:, None] * means).sum(0) / gains.sum()
    assert torch.allclose(model[0].running_mean, weighted, atol=1e-4)
    assert model[0].running_var[0].abs() < 1e-4
    # The estimate is in the stock buffers: a plain layer loads it and infers the same.
    plain = nn.BatchNorm1d(64)
    plain.load_state_dict(model[0].state_dict())
    assert torch.equal(plain.eval()(X), model.eval()(X))
    report, before, after = outcome("first_epochs")
    assert report.findings[0].code == "BN108"
    assert before < after - 0.05


@pain(
    46,
    "Moving averages were never updated: forgotten update ops, or a port without buffers",
    state="diagnosed",
    peer="torch loads a file without statistics (strict=False) and keeps mean 0, variance 1 silently",
    here='print(batchnorm.inspect_checkpoint("model.pt"))',
    thread="https://github.com/tensorflow/tensorflow/issues/11965",
    page="findings.md#bn201",
    without=("batchnorm.inspect_checkpoint", "batchnorm.diagnose"),
    limit="TensorFlow 1 was not run; the rule finds the files it produced",
)
def test_pain_46_statistics_never_moved(tmp_path):
    trained = train(network(), 200)
    port = network(seed=1)
    port.load_state_dict(dict(trained.named_parameters()), strict=False)
    assert accuracy(port) < accuracy(trained) - 0.2
    assert all((layer.running_mean == 0).all() and (layer.running_var == 1).all() for layer in norms(port))
    torch.save(port.state_dict(), tmp_path / "port.pt")
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    found = batchnorm.inspect_checkpoint(tmp_path / "port.pt").findings
    assert [(f.code, f.layer) for f in found if f.severity == "error"] == [("BN201", "1"), ("BN201", "4")]
    assert batchnorm.inspect_checkpoint(tmp_path / "trained.pt").ok
    assert {f.code for f in batchnorm.diagnose(port, batches(), metric).findings} >= {"BN101"}
    batchnorm.recalibrate(port, batches())
    assert accuracy(port) > accuracy(trained) - 0.03
