"""The four steps of batch normalization with real numbers, beside the formula worked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import batchnorm
from batchnorm.demo.words import ENGLISH, Words, lines

CHANNEL = 0


@dataclass(frozen=True)
class Step:
    """One training batch: tensors of length 10, a value a channel."""

    batch_mean: Tensor
    batch_var: Tensor
    normalised_mean: Tensor
    normalised_var: Tensor
    mean_before: Tensor
    var_before: Tensor
    mean_after: Tensor
    var_after: Tensor
    mean_by_hand: Tensor
    var_by_hand: Tensor


@dataclass(frozen=True)
class FourSteps:
    """What was shown: the steps, how much of the initial value is left, and the largest differences."""

    steps: list[Step]
    initial_left: float
    inference_error: float
    recipe_change: float


def four_steps(console: Console, said: Words = ENGLISH, batches: int = 5, seed: int = 0) -> FourSteps:
    """Run BatchNorm1d(10) and Linear(10, 1) on batches of 32 and print what one channel does at every step."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(batchnorm.BatchNorm1d(10), nn.Linear(10, 1)).train()
    layer: Any = model[0]
    console.rule(said.steps, align="left")
    steps = [_train_step(model, torch.randn(32, 10, generator=generator) * 2 + 3) for _ in range(batches)]
    console.print(_table(steps, said))
    left = (1 - layer.momentum) ** batches
    error = _inference(model, torch.randn(32, 10, generator=generator) * 2 + 3)
    change = _recipe(model)
    told = (said.left.format(batches=batches, left=left), said.inference.format(error=error))
    for text in (*told, said.recipe.format(change=change)):
        console.print(lines(text, console.width), highlight=False)
    return FourSteps(steps, left, error, change)


def _train_step(model: nn.Sequential, x: Tensor) -> Step:
    layer: Any = model[0]
    m = layer.momentum
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    y = layer(x).detach()
    model[1](y)
    return Step(
        batch_mean=x.mean(0),
        batch_var=x.var(0, correction=0),
        normalised_mean=y.mean(0),
        normalised_var=y.var(0, correction=0),
        mean_before=mean,
        var_before=var,
        mean_after=layer.running_mean.clone(),
        var_after=layer.running_var.clone(),
        mean_by_hand=(1 - m) * mean + m * x.mean(0),
        var_by_hand=(1 - m) * var + m * x.var(0, correction=1),
    )


def _table(steps: list[Step], said: Words) -> Table:
    table = Table(said.columns[0], title=said.table.format(batches=len(steps)), title_justify="left")
    for heading in said.columns[1:]:
        table.add_column(heading, justify="right")
    for number, step in enumerate(steps, start=1):
        means = (step.batch_mean, step.normalised_mean, step.mean_before, step.mean_after, step.mean_by_hand)
        variances = (step.batch_var, step.normalised_var, step.var_before, step.var_after, step.var_by_hand)
        for name, values in ((said.mean, means), (said.var, variances)):
            table.add_row(name.format(batch=number), *(_number(value[CHANNEL]) for value in values))
    return table


def _number(value: Tensor) -> str:
    # A mean of -1e-8 prints as 0.0000, not as -0.0000.
    return f"{float(value) + 0.0 if abs(float(value)) >= 5e-5 else 0.0:.4f}"


def _inference(model: nn.Sequential, x: Tensor) -> float:
    model.eval()
    layer: Any = model[0]
    by_hand = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
    with torch.no_grad():
        return float((layer(x) - by_hand).abs().max())


def _recipe(model: nn.Sequential) -> float:
    """The recipe found in tutorials, carried out as they do: after eval(), mixing a value with itself."""
    layer: Any = model[0]
    m = layer.momentum
    mean = m * layer.running_mean + (1 - m) * layer.running_mean
    var = m * layer.running_var + (1 - m) * layer.running_var
    return max(float((mean - layer.running_mean).abs().max()), float((var - layer.running_var).abs().max()))
