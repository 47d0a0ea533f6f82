"""The running statistics do not follow the weights, or never got far from their initial value."""

import copy

import torch
from torch import nn

import batchnorm
from gallery.common import X, Y, accuracy, batches, metric, network, norms, train
from tests.pains.table import outcome, pain


@pain(
    1,
    "Great in train(), terrible in eval(), on the very same data",
    state="repaired",
    peer="above 90 % right in train mode, below 70 % in eval mode, on the same data; no warning",
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
    19,
    "A generator's samples are noise in eval() and fine in train()",
    state="repaired",
    peer="samples in eval mode lie more than 0.5 of their norm from those in train mode",
    here="batchnorm.recalibrate(generator, (torch.randn(64, 16) for _ in range(20)))",
    thread="https://github.com/odegeasslbc/FastGAN-pytorch/issues/4",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_19_generator_is_noise_in_eval():
    layers = [nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Tanh()]
    generator = nn.Sequential(*layers)
    for _ in range(30):
        generator(torch.randn(64, 16))
    with torch.no_grad():  # the last large steps of an adversarial game
        generator[0].weight.mul_(3).add_(0.3)
        generator[0].bias.add_(2)
    z = torch.randn(512, 16)

    def off():
        fine = copy.deepcopy(generator).train()(z)
        return float(((generator.eval()(z) - fine).norm() / fine.norm()).detach())

    assert off() > 0.5
    result = batchnorm.recalibrate(generator, (torch.randn(64, 16) for _ in range(40)))
    assert off() < 0.1
    assert result.samples == 40 * 64
    # The image no longer depends on the rest of the batch, as it does in train mode.
    assert torch.allclose(generator(z[:1]), generator(z)[:1], atol=1e-6)


@pain(
    25,
    "A subnet of a supernet scores at chance, or the ranking of subnets is noise",
    state="repaired",
    peer="shared statistics are those of no subnet: the half network is 5 points and more below what it can",
    here="result = batchnorm.recalibrate(model, loader, until=0.02); score(model); result.undo()",
    thread="https://github.com/mit-han-lab/once-for-all/issues/15",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_25_subnet_of_a_supernet():
    report, before, after = outcome("subnet_of_a_supernet")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    assert after > 0.85
    # Candidates do not contaminate each other: the statistics go back to the bit.
    model = train(network(), 40)
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = batchnorm.recalibrate(model, batches(), until=0.05)
    assert 0 < result.samples < 64 * len(batches())
    result.undo()
    assert all(torch.equal(buffer, kept[name]) for name, buffer in model.named_buffers())


@pain(
    26,
    "A pruned or quantised model collapses until batch norm is re-estimated",
    state="repaired",
    peer="weights change, the statistics stay those of the dense network",
    here="batchnorm.recalibrate(model, loader)",
    thread="https://github.com/openvinotoolkit/nncf/pull/41",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_26_pruned_or_quantised():
    report, before, after = outcome("pruned")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    model = train(network(), 200)
    with torch.no_grad():  # two bits
        for layer in (model[0], model[3]):
            step = layer.weight.abs().max() / 1.5
            layer.weight.copy_(((layer.weight / step + 0.5).round() - 0.5) * step)
    quantised = accuracy(model)
    batchnorm.recalibrate(model, batches())
    assert accuracy(model) > quantised + 0.05


@pain(
    28,
    "Averaged-iterate and schedule-free optimisers need a batch norm pass before every evaluation",
    state="repaired",
    peer="evaluated at the averaged weights with the statistics of the last ones",
    here="result = batchnorm.recalibrate(model, loader, until=0.02); evaluate(model); result.undo()",
    thread="https://github.com/facebookresearch/schedule_free/issues/11",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_28_averaged_iterates():
    report, before, after = outcome("averaged_iterates")
    assert report.findings[0].code == "BN104"
    assert before < after - 0.05
    assert after > 0.9
    # Evaluate in the middle of training: weights swapped in and out, training statistics untouched.
    model = train(network(), 60, lr=0.05)
    average = copy.deepcopy(list(model.parameters()))
    for seed in range(4):
        train(model, 15, lr=0.05, seed=seed + 1)
        with torch.no_grad():
            for mean, now in zip(average, model.parameters(), strict=True):
                mean.lerp_(now, 1 / (seed + 2))
    training = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for now, mean in zip(model.parameters(), average, strict=True):
            now.copy_(mean)
    unready = accuracy(model)
    result = batchnorm.recalibrate(model, batches(), until=0.05)
    # How many batches are enough is read from the standard error, not "50, mostly arbitrary".
    assert 0 < result.standard_error < 0.05
    assert result.samples < 64 * len(batches())
    assert accuracy(model) >= unready
    result.undo()
    for name, value in model.named_buffers():
        assert torch.equal(value, training[name])


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
    peer="torch loads a file without statistics (strict=False) and keeps mean 0, variance 1 without a word",
    here='print(batchnorm.inspect_checkpoint("model.pt"))',
    thread="https://github.com/tensorflow/tensorflow/issues/11965",
    page="findings.md#bn201",
    without=("batchnorm.inspect_checkpoint", "batchnorm.diagnose"),
    limit="TensorFlow 1 was not run; the rule finds what it left behind",
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
