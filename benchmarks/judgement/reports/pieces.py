"""What the rebuilt reports are made of: the package's digits, small networks, training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits

DIGITS = load_digits(500)


def network(width: int = 16, normalised: Callable[..., nn.Module] = nn.BatchNorm2d, **layer: Any) -> nn.Sequential:
    """Three convolutions, each with a layer of batch norm."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), normalised(after, **layer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def batches(size: int = 64, change: Callable[[Tensor], Tensor] = lambda x: x, test: bool = False) -> list[Any]:
    """The digits as a loader would give them."""
    x, y = (DIGITS.test_x, DIGITS.test_y) if test else (DIGITS.train_x, DIGITS.train_y)
    return list(zip(change(x).split(size), y.split(size), strict=True))


def accuracy(output: Tensor, batch: Any) -> float:
    """The metric of all reports that classify."""
    return float((output.argmax(1) == batch[1]).float().mean())


def train(
    model: nn.Module,
    data: list[Any],
    epochs: int = 8,
    rate: float = 3e-3,
    prepare: Callable[[nn.Module], Any] = lambda model: model.train(),
    after_epoch: Callable[[nn.Module], Any] = lambda model: None,
    after_step: Callable[[nn.Module], Any] = lambda model: None,
    shuffled: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    only: int | None = None,
) -> nn.Module:
    """Adam on cross entropy; `prepare` is called before every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), rate) if optimizer is None else optimizer
    for _ in range(epochs):
        prepare(model)
        for index in torch.randperm(len(data)).tolist() if shuffled else range(len(data)):
            x, y = data[index]
            if only is not None and index >= only:
                continue
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            after_step(model)
        after_epoch(model)
    return model
