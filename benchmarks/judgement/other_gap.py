"""A gap between training and evaluation that is not batch norm's: saying that it is would be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from judgement.broken import given
from judgement.situation import Kinds
from judgement.tasks import Task, conv, digits, mlp, norms, signals, tabular, train

SITUATIONS = Kinds("other gap")
add = SITUATIONS.add()


@add
def dropout_in_front_of_the_head(seed):
    task = digits(seed, images=True)
    return given(train(conv(dropout=0.8), task, steps=400, settle=150, seed=seed), task)


@add
def dropout_between(seed):
    task = digits(seed)
    return given(train(mlp(64, 10, dropout=0.5), task, steps=400, settle=200, seed=seed), task)


@add
def overfitted(seed):
    task = tabular(seed)
    small = Task(task.x[:200], task.y[:200], task.eval_x, task.eval_y, task.test_x, task.test_y, task.network)
    model = train(task.network(width=96), small, steps=400, settle=150, seed=seed)
    return given(model, small, eval_loader=task.evaluation(), loader=small.loader(40))


@add
def wrong_labels(seed):
    task = digits(seed)
    noisy = task.y.clone()
    noisy[::4] = (noisy[::4] + 1) % 10
    task.y = noisy
    return given(train(task.network(), task, settle=150, seed=seed), task, eval_loader=task.evaluation())


@add
def stochastic_depth(seed):
    class DropPath(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                return x + self.body(x)
            keep = (torch.rand(len(x), 1) > 0.4).float() / 0.6
            return x + keep * self.body(x)

    task = digits(seed)
    blocks = [DropPath(nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))) for _ in range(3)]
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), *blocks, nn.Linear(48, 10))
    return given(train(model, task, steps=300, settle=150, seed=seed), task)


@add
def noise_in_train_mode(seed):
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 2 * torch.randn_like(x) if self.training else x

    task = signals(seed)
    body = task.network()
    model = nn.Sequential(*body[:-1], Noise(), body[-1])
    return given(train(model, task, steps=300, settle=150, seed=seed), task)


@add
def a_head_that_was_replaced(seed):
    task = digits(seed)
    model = train(task.network(), task, settle=150, seed=seed)
    model[-1].reset_parameters()
    return given(model, task)


@add
def barely_trained(seed):
    task = signals(seed)
    model = train(task.network(), task, steps=120, settle=150, lr=0.001, seed=seed)
    return given(model, task)


@add
def dropout_beside_a_small_drift(seed):
    task = digits(seed, images=True)
    model = train(conv(dropout=0.7), task, steps=400, settle=150, seed=seed)
    for layer in norms(model):
        layer.running_mean += 0.12 * layer.running_var.sqrt()
    return given(model, task)


@add
def temperature_in_eval(seed):
    """The head is scaled wrongly in eval, the classes are right."""

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x if self.training else -x

    task = digits(seed)
    body = train(task.network(), task, settle=150, seed=seed)
    return given(nn.Sequential(*body, Scaled()), task)
