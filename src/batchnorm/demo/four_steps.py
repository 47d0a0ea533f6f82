"""The four steps of batch normalization with real numbers, beside the formula worked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import batchnorm

CHANNELS = (0, 1, 2)


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


def four_steps(console: Console, batches: int = 5, seed: int = 0) -> FourSteps:
    """Run BatchNorm1d(10) and Linear(10, 1) on batches of 32 and print every step."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(batchnorm.BatchNorm1d(10), nn.Linear(10, 1)).train()
    layer: Any = model[0]
    console.rule("The four steps", align="left")
    console.print(
        "Does batch norm use the batch or a moving average? Both: the batch while training, the moving average at "
        "inference. In training each batch is (1) measured, (2) normalised with its own mean and biased variance, "
        "and (3) the running statistics move a little towards it, with the unbiased variance. Inference (4) uses "
        "the running statistics.\n"
        f"momentum is {layer.momentum}: in torch the weight of the NEW batch; Keras and Flax call the weight of the "
        "old value momentum, 0.9 for the same thing.\n"
    )
    steps = []
    for index in range(batches):
        step = _train_step(model, torch.randn(32, 10, generator=generator) * 2 + 3)
        steps.append(step)
        console.print(_table(index + 1, step))
    left = (1 - layer.momentum) ** batches
    console.print(
        f"After {batches} batches (1 - momentum)^{batches} = {left:.1%} of the initial mean 0 and variance 1 is "
        "still in the running statistics.\n"
    )
    error = _inference(console, model, torch.randn(32, 10, generator=generator) * 2 + 3)
    change = _recipe(console, model)
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


def _table(number: int, step: Step) -> Table:
    table = Table(title=f"batch {number}", title_justify="left")
    table.add_column("channel")
    for heading in ("batch", "normalised", "running before", "after", "by hand"):
        table.add_column(heading, justify="right")
    for c in CHANNELS:
        hand, after = step.mean_by_hand[c], step.mean_after[c]
        values = (step.batch_mean[c], step.normalised_mean[c], step.mean_before[c], after, hand)
        table.add_row(f"{c} mean", *(_number(v) for v in values))
        values = (step.batch_var[c], step.normalised_var[c], step.var_before[c], step.var_after[c], step.var_by_hand[c])
        table.add_row(f"{c} var", *(_number(v) for v in values))
    return table


def _number(value: Tensor) -> str:
    # A mean of -1e-8 prints as 0.0000, not as -0.0000.
    return f"{float(value) + 0.0 if abs(float(value)) >= 5e-5 else 0.0:.4f}"


def _inference(console: Console, model: nn.Sequential, x: Tensor) -> float:
    model.eval()
    layer: Any = model[0]
    by_hand = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
    with torch.no_grad():
        error = float((layer(x) - by_hand).abs().max())
    console.print(
        "Step 4, inference: y = (x - running_mean) / sqrt(running_var + eps). Largest difference between the layer "
        f"and this formula on a new batch: {error:.1e}.\n"
    )
    return error


def _recipe(console: Console, model: nn.Sequential) -> float:
    """The recipe found in tutorials, carried out as they do: after eval(), mixing a value with itself."""
    layer: Any = model[0]
    before = layer.running_mean.clone(), layer.running_var.clone()
    m = layer.momentum
    mean = m * layer.running_mean + (1 - m) * layer.running_mean
    var = m * layer.running_var + (1 - m) * layer.running_var
    change = max(float((mean - before[0]).abs().max()), float((var - before[1]).abs().max()))
    console.print(
        "A recipe found in tutorials 'updates' the statistics by hand after eval(): "
        "running = m * running + (1 - m) * running.\n"
        f"It mixes the value with itself: the largest change is {change:.1e}, rounding. It also does so in eval "
        "mode, in which nothing should move. There is nothing to do by hand: a forward in train mode moves the "
        "statistics (step 3), and batchnorm.recalibrate(model, loader) measures them anew.\n",
        highlight=False,
    )
    return change
