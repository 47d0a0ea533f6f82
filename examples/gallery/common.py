"""What the scripts share: the digits, small networks, a training loop, and the accuracy in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchnorm.demo.data import load_digits
from batchnorm.diagnosis import Report

DIGITS = load_digits()
X, Y = DIGITS.train_x.flatten(1), DIGITS.train_y
TEST_X, TEST_Y = DIGITS.test_x.flatten(1), DIGITS.test_y


class Outcome(NamedTuple):
    """The report on the broken model, and its metric (larger is better) before and after the fix."""

    report: Report
    before: float
    after: float


class Case(NamedTuple):
    """One failure: its script, the code that must be named first, and a part of the fix that is carried out."""

    name: str
    about: str
    code: str
    fix: str
    run: Callable[[], Outcome]


CASES: list[Case] = []


def broken(code: str, fix: str) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Enter a script in the gallery."""

    def enter(run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        CASES.append(Case(run.__name__, (run.__doc__ or "").splitlines()[0], code, fix, run))
        return run

    return enter


def network(momentum: float | None = 0.1, width: int = 48, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Two hidden layers with batch norm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs in (64, width):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width, momentum=momentum), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(width, 10))


def batches(size: int = 64, x: Tensor = X, y: Tensor = Y) -> list[tuple[Tensor, Tensor]]:
    """The training digits as a list of batches, all of one size."""
    whole = len(x) // size * size
    return list(zip(x[:whole].split(size), y[:whole].split(size), strict=True))


def train(
    model: nn.Module,
    steps: int,
    batch: int = 64,
    lr: float = 0.01,
    x: Tensor = X,
    y: Tensor = Y,
    each: Callable[[nn.Module], None] | None = None,
    optimizer: Any = None,
    seed: int = 0,
) -> nn.Module:
    """Adam on random batches; `each(model)` runs after every step."""
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.Adam(trained, lr=lr)
    model.train()
    for _ in range(steps):
        pick = torch.randint(len(x), (batch,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[pick]).float(), y[pick]).backward()
        optimizer.step()
        if each is not None:
            each(model)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor = TEST_X, y: Tensor = TEST_Y) -> float:
    """In eval mode, as users run it."""
    was_training = model.training
    model.eval()
    found = float((model(x).argmax(1) == y).float().mean())
    model.train(was_training)
    return found


def metric(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    """What `diagnose` is given."""
    return float((output.argmax(1) == batch[1]).float().mean())


def norms(model: nn.Module) -> list[nn.BatchNorm1d]:
    """The batch norm layers."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore
