"""What the trend experiments share: digits under random light, a network of three convolutions, training, error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from batchnorm.demo.data import load_digits

BATCH = 64


class Data(NamedTuple):
    """Training, validation and test images and labels; the last two already under their light."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


def lit(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with a contrast in [0.5, 1.5] and a brightness in [-0.5, 0.5] of its own."""
    contrast, brightness = torch.rand(2, len(x), 1, 1, 1, generator=generator)
    return x * (contrast + 0.5) + brightness - 0.5


def data(validation: int = 250) -> Data:
    """The embedded digits: 1047 to train on, 250 to choose on, 500 to test on."""
    digits, light = load_digits(), torch.Generator().manual_seed(0)
    held = lit(digits.train_x[:validation], light)
    test = lit(digits.test_x, light)
    return Data(
        digits.train_x[validation:], digits.train_y[validation:], held, digits.train_y[:validation], test, digits.test_y
    )


def network(method: str = "batchnorm", seed: int = 0, **choices: Any) -> nn.Sequential:
    """Convolutions of 16, 32 and 32 channels with batch norm of one method, pooling and a linear layer."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if inputs == 16 else []
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    recipe = batchnorm.layers.recipe_for(method, **choices)
    # Without the estimator convert keeps each layer's momentum, torch's 0.1.
    batchnorm.convert(model, method, **{**choices, "estimator": recipe.estimator})
    # What takes off no mean leaves that to the weights, as its paper does.
    return model if recipe.coupling.centres else batchnorm.models.center_weights(model)  # pyright: ignore


def shuffled(data: Data, steps: int, seed: int, batch: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(data.train_x), (batch,), generator=generator)
        yield lit(data.train_x[pick], generator), data.train_y[pick]


def grouped(
    data: Data, steps: int, seed: int, classes: int, group: int = 8, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of groups, the samples of a group drawn from a few classes only."""
    generator = torch.Generator().manual_seed(seed)
    members = [(data.train_y == label).nonzero()[:, 0] for label in range(10)]
    for _ in range(steps):
        picks = []
        for _ in range(batch // group):
            labels = torch.randperm(10, generator=generator)[:classes]
            for place in range(group):
                of_class = members[int(labels[place % classes])]
                picks.append(of_class[torch.randint(len(of_class), (), generator=generator)])
        pick = torch.stack(picks)
        yield lit(data.train_x[pick], generator), data.train_y[pick]


def train(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    rate: float = 1e-2,
    freeze_after: int | None = None,
    cosine: bool = True,
) -> nn.Module:
    """Adam, its rate falling on half a cosine; from `freeze_after` on with the statistics frozen."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step, (x, y) in enumerate(batches):
        if step == freeze_after:
            batchnorm.freeze(model)
        if cosine:
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent wrong with the stored statistics."""
    return 100 * float((model.eval()(x).argmax(1) != y).float().mean())


@torch.no_grad()
def error_with_batches(model: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    """Percent wrong when consecutive samples, `size` at a time, normalise each other; a short rest is left out."""
    wrong = total = 0
    model.train()
    with batchnorm.pause(model):
        for xs, ys in zip(x.split(size), y.split(size), strict=True):
            if len(xs) == size:
                wrong += int((model(xs).argmax(1) != ys).sum())
                total += size
    model.eval()
    return 100 * wrong / total


def recalibrated(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """The model with statistics measured anew on these batches."""
    batchnorm.recalibrate(model, [x for x, _ in batches])
    return model


def row(method: str, errors: list[float], **more: Any) -> dict[str, Any]:
    """One line of a table: errors in percent, a number a seed, their mean and its standard error."""
    spread = statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else 0.0
    rounded = [round(value, 2) for value in errors]
    return {
        "method": method,
        **more,
        "mean": round(statistics.fmean(errors), 2),
        "se": round(spread, 2),
        "errors": rounded,
    }
