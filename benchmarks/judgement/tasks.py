"""Small tasks and networks that train in a second or two on one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Task:
    """Training, evaluation and test data, and a network for them."""

    x: Tensor
    y: Tensor
    eval_x: Tensor
    eval_y: Tensor
    test_x: Tensor
    test_y: Tensor
    network: Callable[..., nn.Module]

    def loader(self, size: int = 64) -> Batches:
        return batches(self.x, self.y, size)

    def evaluation(self, size: int = 100) -> Batches:
        return batches(self.eval_x, self.eval_y, size)

    def test(self, size: int = 200) -> Batches:
        return batches(self.test_x, self.test_y, size)


def batches(x: Tensor, y: Tensor, size: int = 64, ragged: bool = False) -> Batches:
    whole = len(x) if ragged else len(x) // size * size
    return list(zip(x[:whole].split(size), y[:whole].split(size), strict=True))


def accuracy(output: Any, batch: Any) -> float:
    output = output[0] if isinstance(output, (tuple, list)) else output
    return float((output.argmax(1) == batch[1]).float().mean())


def mlp(
    inputs: int, classes: int, width: int = 48, depth: int = 2, momentum: float | None = 0.1, dropout: float = 0.0,
    first: float = 0.0, affine: bool = True, layer: Callable[..., nn.Module] = nn.BatchNorm1d,
) -> nn.Sequential:  # fmt: skip
    parts: list[nn.Module] = [nn.Dropout(first)] if first else []
    for _ in range(depth):
        parts += [nn.Linear(inputs, width), layer(width, momentum=momentum, affine=affine), nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*parts, nn.Linear(width, classes))


def conv(classes: int = 10, momentum: float | None = 0.1, dropout: float = 0.0, width: int = 12) -> nn.Sequential:
    parts: list[nn.Module] = []
    inputs = 1
    for stride in (1, 2):
        parts += [nn.Conv2d(inputs, width, 3, padding=1, stride=stride, bias=False)]
        parts += [nn.BatchNorm2d(width, momentum=momentum), nn.ReLU()]
        inputs = width
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * 16, classes))


def temporal(channels: int = 4, classes: int = 4, momentum: float | None = 0.1, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, 16, 5, padding=2, bias=False), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, classes),
    )  # fmt: skip


def digits(seed: int, images: bool = False) -> Task:
    """The embedded digits in an order of their own; 1,000 to train, 300 to evaluate, the rest to test."""
    data = load_digits()
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order].reshape(len(x), 1, 8, 8) if images else x[order].flatten(1), y[order]
    build = conv if images else (lambda **options: mlp(64, 10, **options))
    return Task(x[:1000], y[:1000], x[1000:1300], y[1000:1300], x[1300:], y[1300:], build)


def _split(x: Tensor, y: Tensor, network: Callable[..., nn.Module]) -> Task:
    a, b = len(x) // 3, len(x) // 2
    return Task(x[:a], y[:a], x[a:b], y[a:b], x[b:], y[b:], network)


def tabular(seed: int, heavy: bool = False, samples: int = 4800, classes: int = 3) -> Task:
    """Features of different scales, some skewed; classes by a random two-layer rule."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, 12, generator=g)
    hidden = (z @ torch.randn(12, 16, generator=g)).tanh()
    score = hidden @ torch.randn(16, classes, generator=g)
    y = (score - score.mean(0)).argmax(1)
    x = z * (torch.rand(12, generator=g) * 3 + 0.2) + torch.randn(12, generator=g)
    if heavy:
        x[:, ::3] = x[:, ::3].exp().clamp_max(1e4)
        x[:, 1::3] = x[:, 1::3] * (3 / torch._standard_gamma(torch.full((samples, 4), 1.5), generator=g) / 2).sqrt()
    return _split(x, y, lambda **options: mlp(12, classes, **options))


def signals(seed: int, samples: int = 2400, length: int = 48) -> Task:
    """Four channels; the class is a frequency, its phase and amplitude are random."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (samples,), generator=g)
    t = torch.arange(length) / length
    phase = torch.rand(samples, 4, 1, generator=g) * 6.28
    amplitude = torch.rand(samples, 4, 1, generator=g) + 0.5
    x = amplitude * (6.28 * (2 + 2 * y[:, None, None]) * t + phase).sin()
    x = x + 0.7 * torch.randn(samples, 4, length, generator=g) + 1.0
    return _split(x, y, temporal)


def train(
    model: nn.Module, task: Task, steps: int = 250, lr: float = 0.01, size: int = 64, seed: int = 0, settle: int = 80,
    each: Callable[[nn.Module, int], None] | None = None, mode: Callable[[nn.Module], Any] = lambda m: m.train(),
    change: Callable[[Tensor], Tensor] = lambda x: x, weight: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """Adam, then `settle` more steps at a small rate."""
    g = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps + settle):
        if step == steps:
            optimizer.param_groups[0]["lr"] = lr / 50
        mode(model)
        if weight is None:
            pick = torch.randint(len(task.x), (size,), generator=g)
        else:
            pick = torch.multinomial(weight, size, replacement=True, generator=g)
        optimizer.zero_grad()
        functional.cross_entropy(model(change(task.x[pick])), task.y[pick]).backward()
        optimizer.step()
        if each is not None:
            each(model, step)
    return model


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def quantise(model: nn.Module, bits: int) -> nn.Module:
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                top = m.weight.abs().flatten(1).amax(1).view(-1, *[1] * (m.weight.dim() - 1))
                step = top / (2 ** (bits - 1) - 1)
                m.weight.copy_((m.weight / step).round() * step)
    return model


def prune(model: nn.Module, part: float) -> nn.Module:
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)) and m.weight.shape[0] > 10:
                small = m.weight.abs() < m.weight.abs().flatten().quantile(part)
                m.weight[small] = 0.0
    return model


def follow(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
            a.mul_(decay).add_(b, alpha=1 - decay)


def score(model: nn.Module, loader: Batches, metric: Callable[..., float] = accuracy) -> float:
    model.eval()
    with torch.no_grad():
        parts = [(metric(model(x), (x, y)), len(x)) for x, y in loader]
    return sum(v * n for v, n in parts) / sum(n for _, n in parts)


copied = copy.deepcopy
