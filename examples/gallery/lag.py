"""The running statistics do not follow the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import batchnorm
from gallery.common import TEST_X, Outcome, X, Y, accuracy, batches, broken, metric, network, norms, train


@broken("BN108", "batchnorm.recalibrate(model, loader)")
def keras_default_and_few_steps() -> Outcome:
    """Row 5: momentum 0.99 as Keras calls it, and 40 steps: two thirds of the initial value remain."""
    model = train(network(momentum=0.01), 40)
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


def _convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs, momentum=0.01)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@broken("BN108", 'batchnorm.convert(model, "debiased", count=0)')
def first_epochs() -> Outcome:
    """Row 31: evaluated after 50 steps; the initial value decays as 0.99^t. The fix is to train on debiased."""
    model = train(_convolutional(), 50)
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    train(batchnorm.convert(model, "debiased", count=0), 20)
    return Outcome(report, before, accuracy(model))


@broken("BN104", "batchnorm.recalibrate(model, loader)")
def weights_moved_on() -> Outcome:
    """Row 1: great in train(), terrible in eval(): after training, a few large steps that statistics lag behind."""
    model = train(network(momentum=0.01), 600)
    train(model, 30, lr=0.2, seed=1)
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


@broken("BN104", "batchnorm.recalibrate(model, loader)")
def pruned() -> Outcome:
    """Row 26: most of a layer's smallest weights set to zero; the statistics are those of the dense network."""
    model = train(network(), 300)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            small = layer.weight.abs() < layer.weight.abs().flatten().quantile(0.8)
            layer.weight[small] = 0.0
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


class Slimmable(nn.Module):
    """A network that also runs with half of its first hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.half = network(), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Whole, or with half of the first hidden layer."""
        hidden = self.whole[2](self.whole[1](self.whole[0](x)))
        if self.half:
            hidden = torch.cat([hidden[:, :24], torch.zeros_like(hidden[:, 24:])], 1)
        return self.whole[3:](hidden)


@broken("BN104", "batchnorm.recalibrate(model, loader)")
def subnet_of_a_supernet() -> Outcome:
    """Row 25: trained whole and, now and then, half; the shared statistics are not those of the half."""
    model = Slimmable()

    def swap(_: nn.Module) -> None:
        model.half = bool(torch.rand(()) < 0.05)

    train(model, 400, each=swap)
    model.half = True
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


@broken("BN104", "batchnorm.recalibrate(model, loader)")
def averaged_iterates() -> Outcome:
    """Rows 6 and 28: evaluated at averaged weights, with the statistics of the last ones."""
    model = train(network(), 60, lr=0.1)
    average = AveragedModel(model)
    for round_ in range(12):
        train(model, 30, lr=0.1, seed=round_)
        average.update_parameters(model)
    report = batchnorm.diagnose(average, batches(), metric)
    before = accuracy(average)
    batchnorm.recalibrate(average, batches())
    return Outcome(report, before, accuracy(average))


@broken("BN120", "batchnorm.recalibrate(model, loader)")
def measured_with_dropout_on() -> Outcome:
    """Row 6: torch's update_bn switches dropout on while it measures the layer behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.8), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    train(model, 500)
    torch.optim.swa_utils.update_bn(batches(), model)
    report = batchnorm.diagnose(model, batches(), metric)
    before = -_error_of_scale(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, -_error_of_scale(model))


@torch.no_grad()
def _error_of_scale(model: nn.Sequential) -> float:
    """How far the layer's variance is from 1 at inference, as users of eval mode get it."""
    model.eval()
    hidden = model[:3](X)
    return float((hidden.var(0) / model[2].weight.square() - 1).abs().median())


@broken("BN112", "momentum = 0.01; batchnorm.recalibrate(model, loader)")
def momentum_of_keras_in_torch() -> Outcome:
    """Row 7: momentum 0.99 in torch: the statistics are those of the last batch, here of one kind."""
    model = train(network(momentum=0.99), 300)
    # The last batch of the epoch is the rest of a sorted part: one class.
    with torch.no_grad():
        model.train()(X[Y == 1][:24])
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    for layer in norms(model):
        layer.momentum = 0.01
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


@broken("BN103", "batchnorm.recalibrate(model, loader)")
def naive_variance() -> Outcome:
    """Row 35: a re-implementation stores E[x^2] - E[x]^2 in float32, of inputs with a large mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    shifted = X + 5000.0
    train(model, 200, x=shifted)
    with torch.no_grad():
        mean = shifted.mean(0)
        model[0].running_mean.copy_(mean)
        model[0].running_var.copy_(shifted.square().mean(0) - mean.square())
    loader = batches(x=shifted)
    report = batchnorm.diagnose(model, loader, metric)
    before = accuracy(model, TEST_X + 5000.0)
    batchnorm.recalibrate(model, loader)
    return Outcome(report, before, accuracy(model, TEST_X + 5000.0))
