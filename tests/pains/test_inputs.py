"""What the layers are given: padding, mixtures, data from elsewhere."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from gallery.common import TEST_X, TEST_Y, X, accuracy, network, norms, train
from tests.pains.table import outcome, pain


@pain(
    8,
    "Padded sequences pull the statistics toward 0",
    state="prevented",
    peer="padding counts as data: a mean of 5 is stored as 2.75 with 45 % padding",
    here="with batchnorm.masked(model, lengths=lengths): model(x)",
    thread="https://github.com/pytorch/pytorch/issues/70529",
    page="masks.md",
    without=("batchnorm.masked", "batchnorm.diagnose"),
)
def test_pain_08_padding():
    lengths = torch.tensor([10, 7, 4, 1])
    valid = torch.arange(10) < lengths[:, None]
    x = (torch.randn(4, 3, 10) + 5) * valid[:, None]
    data = x.movedim(1, 2)[valid]
    stock = nn.BatchNorm1d(3, momentum=1.0)
    stock(x)
    assert torch.allclose(stock.running_mean, data.mean(0) * 22 / 40, rtol=1e-5)
    model = batchnorm.convert(nn.Sequential(nn.BatchNorm1d(3, momentum=1.0)))
    with batchnorm.masked(model, lengths=lengths):
        y = model(x)
    assert torch.allclose(model[0].running_mean, data.mean(0), rtol=1e-5)
    assert torch.allclose(model[0].running_var, data.var(0), rtol=1e-5)
    expected = (data - data.mean(0)) / (data.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(y.movedim(1, 2)[valid], expected, atol=1e-5)
    assert (y.movedim(1, 2)[~valid] == 0).all()
    found = batchnorm.diagnose(nn.Sequential(nn.BatchNorm1d(3)), [x, x.roll(1, 0)]).findings
    assert "BN115" in {f.code for f in found}


@pytest.mark.slow
def test_pain_08_training_with_lengths():
    report, before, after = outcome("padding")
    assert report.findings[0].code == "BN115"
    assert before < after - 0.05


@pain(
    18,
    "Several kinds of input share one layer (siamese, domains, clean and adversarial): eval is much worse",
    state="prevented",
    peer="one mean and variance for the mixture: variance 26 where each kind has 1, and outputs a fifth in size",
    here='with batchnorm.bank(model, "target"): model(x)',
    thread="https://github.com/pytorch/pytorch/issues/8985",
    page="banks.md",
    without="batchnorm.bank",
)
def test_pain_18_several_distributions():
    kinds = {"clean": torch.randn(256, 3) - 5, "distorted": torch.randn(256, 3) + 5}
    model = batchnorm.convert(nn.Sequential(nn.BatchNorm1d(3)))
    stock = nn.BatchNorm1d(3)
    for _ in range(100):
        stock(torch.cat(list(kinds.values())))
        for kind, x in kinds.items():
            with batchnorm.bank(model, kind):
                model(x)
    assert stock.running_var.min() > 24
    for kind, x in kinds.items():
        assert stock.eval()(x).std(0).max() < 0.25
        with batchnorm.bank(model, kind):
            y = model.eval()(x)
        model.train()
        assert y.mean(0).abs().max() < 0.01
        assert (y.std(0) - 1).abs().max() < 0.01
    assert len(list(model.parameters())) == 2  # weight and bias are shared
    report, before, after = outcome("two_domains_in_one_layer")
    assert report.findings[0].code == "BN116"
    assert before < after - 0.05


@pain(
    38,
    "Test-time adaptation is fragile: batch size, momentum, drift",
    state="repaired",
    peer="train mode at test time: batches of 2 lose 20 points and more, and the source's statistics are gone",
    here='result = batchnorm.adapt(model, data, "prior"); result.undo()',
    thread="https://github.com/DequanWang/tent/issues/7",
    page="adapt.md",
    without="batchnorm.adapt",
)
def test_pain_38_adaptation():
    model = train(network(), 300)
    kept = copy.deepcopy(model.state_dict())

    def by_batches(of, x):
        # Train mode, as adaptation by hand does, or whatever the adapted layers do.
        right = [
            float((of(part).argmax(1) == y).float().sum()) for part, y in zip(x.split(2), TEST_Y.split(2), strict=True)
        ]
        return sum(right) / len(x)

    clean = accuracy(model)
    by_hand = copy.deepcopy(model).train()
    with torch.no_grad():
        assert by_batches(by_hand, TEST_X) < clean - 0.2
        assert not torch.allclose(norms(by_hand)[0].running_var, kept["1.running_var"], rtol=0.05)
        result = batchnorm.adapt(model, mode="prior", prior=32)
        assert by_batches(model, TEST_X) > clean - 0.05
        result.undo()
    elsewhere = TEST_X * 0.3 + 0.5
    shifted = accuracy(model, elsewhere)
    assert shifted < clean - 0.2
    result = batchnorm.adapt(model, elsewhere.split(50), mode="domain")
    assert accuracy(model, elsewhere) > shifted + 0.15
    result.undo()
    assert accuracy(model) == clean
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_pain_18_a_siamese_pair_can_share_one_batch():
    """Where both inputs are meant to be one population, they are normalised together."""
    layer, now, then = nn.BatchNorm1d(64), X[:32], X[32:64] + 4
    a, b = batchnorm.models.union(nn.Sequential(layer), now, then)
    whole = nn.BatchNorm1d(64)(torch.cat([now, then]))
    assert torch.equal(torch.cat([a, b]), whole)
    assert int(layer.num_batches_tracked) == 1
