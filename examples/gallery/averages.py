"""Models made of other models' parameters, without their buffers."""

from __future__ import annotations

import copy

import torch
from torch import nn

import batchnorm
from gallery.common import TEST_X, Outcome, X, Y, accuracy, batches, broken, metric, network, norms, train


@torch.no_grad()
def _follow(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        a.mul_(decay).add_(b, alpha=1 - decay)


@broken("BN101", "batchnorm.recalibrate(model, loader)")
def mean_teacher() -> Outcome:
    """Row 4: an EMA of parameters() only; its statistics are those of the untrained network."""
    model = network()
    teacher = copy.deepcopy(model)
    train(model, 300, each=lambda m: _follow(teacher, m, 0.95))
    report = batchnorm.diagnose(teacher, batches(), metric)
    before = accuracy(teacher)
    batchnorm.recalibrate(teacher, batches())
    return Outcome(report, before, accuracy(teacher))


@broken("BN101", "batchnorm.recalibrate(model, loader)")
def federated_average() -> Outcome:
    """Row 20: FedAvg walks parameters(): the server never sees a running statistic."""
    server = network()
    halves = ((X[::2], Y[::2]), (X[1::2], Y[1::2]))
    for round_ in range(6):
        clients = [train(copy.deepcopy(server), 40, x=x, y=y, seed=round_) for x, y in halves]
        with torch.no_grad():
            for target, *parts in zip(server.parameters(), *(c.parameters() for c in clients), strict=True):
                target.copy_(torch.stack(parts).mean(0))
    report = batchnorm.diagnose(server, batches(), metric)
    before = accuracy(server)
    batchnorm.recalibrate(server, batches())
    return Outcome(report, before, accuracy(server))


@broken("BN101", "copy, save and load buffers too")
def ported_without_buffers() -> Outcome:
    """Row 46: a port that copies weights by name and forgets what is no parameter."""
    model = train(network(), 300)
    port = network(seed=1)
    port.load_state_dict(dict(model.named_parameters()), strict=False)
    report = batchnorm.diagnose(port, batches(), metric)
    before = accuracy(port)
    port.load_state_dict({**dict(model.named_parameters()), **dict(model.named_buffers())})
    return Outcome(report, before, accuracy(port))


@broken("BN102", "batchnorm.recalibrate(model, loader)")
def one_bad_batch() -> Outcome:
    """Row 16: one batch with a NaN in it, whose step a loss scaler skipped; train mode does not show it."""
    model = train(network(), 200)
    with torch.no_grad():
        bad = X[:64].clone()
        bad[3, 5] = torch.nan
        model(bad)
    train(model, 200, seed=1)
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


@broken("BN107", "batchnorm.recalibrate(model, loader)")
def no_momentum_misread() -> Outcome:
    """Row 44: statistics re-estimated with momentum 0.0, meant as None, a cumulative average."""
    model = train(network(), 300)
    for layer in norms(model):
        layer.reset_running_stats()
        layer.momentum = 0.0
    with torch.no_grad():
        for x, _ in batches():
            model.train()(x)
    report = batchnorm.diagnose(model, batches(), metric)
    before = accuracy(model)
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))


@broken("BN105", "model.float()")
def bfloat16_buffers() -> Outcome:
    """Row 22: a whole model in bfloat16 and a small momentum: updates round away."""
    model = network(momentum=0.002).bfloat16()
    train(model, 400, x=X.bfloat16(), lr=0.005)
    loader = batches(x=X.bfloat16())
    report = batchnorm.diagnose(model, loader)
    before = accuracy(model, TEST_X.bfloat16())
    model.float()
    batchnorm.recalibrate(model, batches())
    return Outcome(report, before, accuracy(model))
