"""A network that is accurate in train mode and poor in eval mode, for a real reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import batchnorm
from batchnorm.demo.data import Digits

STEPS, BATCH = 40, 64


@dataclass
class History:
    """Batch and running statistics of one channel of the first layer, step by step."""

    batch_mean: list[float] = field(default_factory=list)
    running_mean: list[float] = field(default_factory=list)
    batch_var: list[float] = field(default_factory=list)
    running_var: list[float] = field(default_factory=list)


def build() -> nn.Sequential:
    """Three convolutions with batch norm at momentum 0.01, which is Keras' default 0.99."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, batchnorm.BatchNorm2d(outputs, momentum=0.01), nn.ReLU()]

    layers = [*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(digits: Digits, seed: int = 0) -> tuple[nn.Sequential, History]:
    """Train for 40 steps, too few for the momentum: 0.99^40 = 67 % of the initial statistics remain."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = History()
    layer: Any = model[1]
    channel = 0
    for _ in range(STEPS):
        pick = torch.randint(len(digits.train_x), (BATCH,), generator=generator)
        x, y = digits.train_x[pick], digits.train_y[pick]
        with torch.no_grad():
            received = model[0](x)[:, channel]
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.batch_mean.append(float(received.mean()))
        history.batch_var.append(float(received.var()))
        history.running_mean.append(float(layer.running_mean[channel]))
        history.running_var.append(float(layer.running_var[channel]))
    return model, history


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor, mode: str) -> tuple[float, float]:
    """Accuracy and loss with the batch's statistics ("train") or the stored ones ("eval"); nothing moves."""
    was_training = model.training
    model.train(mode == "train")
    with batchnorm.pause(model):
        logits = model(x)
    model.train(was_training)
    return float((logits.argmax(1) == y).float().mean()), float(functional.cross_entropy(logits, y))
