"""Frozen, so its author believes."""

from __future__ import annotations

import copy

import torch
from torch import nn

import batchnorm
from gallery.common import TEST_X, TEST_Y, Outcome, X, Y, accuracy, batches, broken, metric, network, norms, train

OTHER = (X * 2 + 1, (Y + 3) % 10)  # the task that is fine-tuned on


def _fine_tune(model: nn.Sequential) -> nn.Sequential:
    """A new head on frozen features, trained on other data."""
    for p in model[:-1].parameters():
        p.requires_grad_(False)
    head = copy.deepcopy(model[-1])
    train(model, 150, x=OTHER[0], y=OTHER[1])
    model[-1] = head
    return model


@broken("BN109", "batchnorm.freeze(model), after loading the statistics from before")
def frozen_by_requires_grad() -> Outcome:
    """Row 2: features frozen by requires_grad; a new head is trained, and the old one does not fit any more."""
    model = train(network(), 300)
    saved = copy.deepcopy(model.state_dict())
    broken_model = _fine_tune(copy.deepcopy(model))
    report = batchnorm.diagnose(broken_model, batches(x=OTHER[0], y=OTHER[1]), metric)
    before = accuracy(broken_model)
    model.load_state_dict(saved)
    _fine_tune(batchnorm.freeze(model))
    return Outcome(report, before, accuracy(model))


@broken("BN107", "batchnorm.freeze(model)")
def frozen_by_momentum() -> Outcome:
    """Row 51: momentum 0 to freeze: training never sees the statistics that inference uses."""
    pretrained = train(network(), 200)
    results, reports = [], []
    for frozen in (False, True):
        model = copy.deepcopy(pretrained)
        if frozen:
            batchnorm.freeze(model)
        for layer in norms(model):
            layer.momentum = 0.0
        train(model, 500, x=OTHER[0], y=OTHER[1])
        reports.append(batchnorm.diagnose(model, batches(x=OTHER[0], y=OTHER[1]), metric))
        results.append(accuracy(model, TEST_X * 2 + 1, (TEST_Y + 3) % 10))
    return Outcome(reports[0], *results)


@broken("BN113", "track_running_stats = True; batchnorm.recalibrate(model, loader)")
def tracking_switched_off() -> Outcome:
    """Row 24: track_running_stats = False after construction; eval mode still uses the old buffers."""
    model = train(network(), 200)
    for layer in norms(model):
        layer.track_running_stats = False
    train(model, 200, x=OTHER[0], y=OTHER[1])
    loader = batches(x=OTHER[0], y=OTHER[1])
    report = batchnorm.diagnose(model, loader, metric)
    before = accuracy(model, TEST_X * 2 + 1, (TEST_Y + 3) % 10)
    for layer in norms(model):
        layer.track_running_stats = True
    batchnorm.recalibrate(model, loader)
    return Outcome(report, before, accuracy(model, TEST_X * 2 + 1, (TEST_Y + 3) % 10))


@broken("BN125", "build it with track_running_stats=True")
def no_statistics_at_all() -> Outcome:
    """Row 39: built with track_running_stats=False, and asked one class at a time."""

    def build(tracking: bool) -> nn.Sequential:
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(48, track_running_stats=tracking)
        return nn.Sequential(nn.Linear(64, 48), norm, nn.ReLU(), nn.Linear(48, 10))

    order = torch.argsort(TEST_Y, stable=True)

    def by_class(model: nn.Module) -> float:
        groups = zip(TEST_X[order].split(10), TEST_Y[order].split(10), strict=True)
        return sum(accuracy(model, x, y) for x, y in groups) / 50

    model = train(build(False), 300)
    report = batchnorm.diagnose(model, batches(), metric)
    fixed = build(True)
    fixed.load_state_dict(model.state_dict(), strict=False)
    batchnorm.recalibrate(fixed, batches())
    return Outcome(report, by_class(model), by_class(fixed))


@broken("BN124", "module.__class__ = torch.nn.BatchNorm2d")
def sync_on_a_cpu() -> Outcome:
    """Row 14: trained with SyncBatchNorm on GPUs, and fine-tuned in processes on a CPU."""
    pretrained = train(network(), 200)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(pretrained))
    model[-1].reset_parameters()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        report = batchnorm.diagnose(model, batches(), metric)
        try:
            train(model, 200)
        except ValueError as error:
            refused = str(error)
        before = accuracy(model)
        for module in model.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = nn.BatchNorm1d
        train(model, 200)
    finally:
        torch.distributed.destroy_process_group()
    if "GPU" not in refused:
        raise RuntimeError(f"the script should have been refused for its device; it was {refused}")
    return Outcome(report, before, accuracy(model))
