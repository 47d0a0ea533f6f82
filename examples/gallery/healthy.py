"""Models that are in order, some of them strange: none may raise an alarm above a note."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import batchnorm
from batchnorm.diagnosis import Report
from gallery.common import X, Y, batches, metric, network, train

HEALTHY: dict[str, Callable[[], Report]] = {}


def _healthy(make: Callable[[], Report]) -> Callable[[], Report]:
    HEALTHY[make.__name__] = make
    return make


def _report(model: nn.Module, loader: list | None = None) -> Report:
    return batchnorm.diagnose(model, loader or batches(), metric)


def _settled(model: nn.Module) -> nn.Module:
    """Trained until it changes little, as finished models are."""
    train(model, 300)
    return train(model, 200, lr=1e-4, seed=1)


@_healthy
def plain() -> Report:
    """Trained as usual."""
    return _report(_settled(network()))


@_healthy
def with_dropout_in_front_of_the_head() -> Report:
    """Dropout where it does no harm to statistics; a note says that it makes the gap."""
    body = network()
    return _report(_settled(nn.Sequential(*body[:-1], nn.Dropout(0.3), body[-1])))


@_healthy
def cumulative_average() -> Report:
    """momentum=None from the beginning of a short, careful training."""
    model = train(network(), 300)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
            layer.momentum = None
    return _report(train(model, 100, lr=1e-5))


@_healthy
def recalibrated_after_a_short_training() -> Report:
    """A small counter and right statistics."""
    model = train(network(momentum=0.01), 30)
    batchnorm.recalibrate(model, batches())
    return _report(model)


@_healthy
def frozen_and_fine_tuned() -> Report:
    """Frozen by freeze, and trained on."""
    model = batchnorm.freeze(_settled(network()), affine=True)
    return _report(train(model, 50))


@_healthy
def averaged_with_buffers() -> Report:
    """SWA with update_bn, as it should be."""
    model = _settled(network())
    average = AveragedModel(model)
    for seed in range(4):
        train(model, 20, lr=1e-3, seed=seed)
        average.update_parameters(model)
    torch.optim.swa_utils.update_bn(batches(), average)
    return _report(average)


@_healthy
def our_layers() -> Report:
    """Converted, default method."""
    return _report(_settled(batchnorm.convert(network())))


@_healthy
def debiased() -> Report:
    """Few steps, debiased, weights that move slowly."""
    return _report(train(batchnorm.convert(_settled(network()), "debiased"), 20, lr=1e-5))


@_healthy
def without_affine() -> Report:
    """affine=False."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(48, affine=False)
    return _report(_settled(nn.Sequential(nn.Linear(64, 48), norm, nn.ReLU(), nn.Linear(48, 10))))


@_healthy
def evaluated_in_sorted_order() -> Report:
    """A loader sorted by class, as validation loaders are: a note, no alarm."""
    order = torch.argsort(Y, stable=True)[:1280]
    return _report(_settled(network()), batches(x=X[order], y=Y[order]))


@_healthy
def convolutional() -> Report:
    """Images, batch norm after every convolution, one dead channel."""
    torch.manual_seed(0)
    images = X.view(-1, 1, 8, 8)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    with torch.no_grad():
        model[0].weight[3] = 0.0
        model[0].bias[3] = 0.0
        model[1].weight[3] = 0.0
    train(model, 150, x=images)
    train(model, 150, lr=1e-4, x=images)
    return _report(model, batches(x=images))


@_healthy
def copied_and_compared() -> Report:
    """A deep copy."""
    return _report(copy.deepcopy(_settled(network())))
