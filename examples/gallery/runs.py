"""What shows while it runs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.diagnosis import watch
from gallery.common import Outcome, X, Y, accuracy, batches, broken, metric, network, norms, train


def _watched(model: nn.Module, work: Any, optimizer: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(model, optimizer) as report:
            work()
    return report


@broken("BN303", "with batchnorm.pause(model)")
def summary_in_train_mode() -> Outcome:
    """Row 13: a summary, a FLOP counter, a learning-rate finder run a trained model forward on random data."""
    trained = train(network(), 300)

    def summarise(model: nn.Module) -> None:
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(2, 64) * 3)

    model = copy.deepcopy(trained)
    report = _watched(model, lambda: summarise(model))
    paused = copy.deepcopy(trained)
    with batchnorm.pause(paused):
        summarise(paused)
    return Outcome(report, accuracy(model), accuracy(paused))


@broken("BN311", "with batchnorm.pause(model)")
def second_forward_moves_too() -> Outcome:
    """Row 17: a consistency pass on strongly distorted inputs also moves the statistics."""

    def fit(model: nn.Module, pausing: bool) -> Any:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)

        def work() -> None:
            for _ in range(150):
                pick = torch.randint(len(X), (64,), generator=generator)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(X[pick]), Y[pick]).backward()
                distorted = X[pick] * 4 + 2 * torch.randn(64, 64, generator=generator)
                if pausing:
                    with batchnorm.pause(model):
                        model(distorted).square().mean().mul(1e-3).backward()
                else:
                    model(distorted).square().mean().mul(1e-3).backward()
                optimizer.step()

        return _watched(model, work, optimizer)

    model, paused = network(), network()
    report = fit(model, False)
    fit(paused, True)
    return Outcome(report, accuracy(model), accuracy(paused))


class Checkpointed(nn.Module):
    """Saves memory by running its hidden layers again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        """Activation checkpointing around all but the head."""
        return self.body[-1](checkpoint(self.body[:-1], x.requires_grad_(), use_reentrant=False))


@broken("BN111", "batchnorm.convert(model)")
def checkpointing_counts_twice() -> Outcome:
    """Row 12: activation checkpointing updates the statistics twice a step."""

    def steps_per_update(model: nn.Module) -> float:
        train(model, 50, x=X.clone())
        return 50 / float(norms(model)[0].num_batches_tracked)

    model = Checkpointed()
    before = steps_per_update(model)
    report = batchnorm.diagnose(train(model, 200), [(x.clone(), y) for x, y in batches()], metric)
    return Outcome(report, before, steps_per_update(batchnorm.convert(Checkpointed())))
