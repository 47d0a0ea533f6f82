"""Small models and data that the rules' examples are built from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.diagnosis.findings import Example
from batchnorm.models.recalibration.recalibrating import recalibrate

FEATURES = 8


def data(samples: int = 512, features: int = FEATURES, seed: int = 0) -> Tensor:
    """Standard normal rows."""
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed))


def batches(size: int = 32, seed: int = 0) -> list[Tensor]:
    """The same rows, in batches."""
    return list(data(seed=seed).split(size))


def network(hidden: int = 2, seed: int = 0, dropout: float = 0.0) -> Any:
    """Linear layers with batch norm, untrained, with the exact statistics of `batches()` and a large counter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for _ in range(hidden):
            parts += [nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU()]
        model = nn.Sequential(*parts, nn.Dropout(dropout), nn.Linear(FEATURES, 3))
    settle(model, batches())
    return model


def healthy() -> Example:
    """The network with nothing wrong in it."""
    return Example(network(), batches())


def having(**attributes: Any) -> Example:
    """The network with other attributes of its first batch norm layer."""
    model = network()
    for name, value in attributes.items():
        setattr(norms(model)[0], name, value)
    return Example(model, batches())


@torch.no_grad()
def settle(model: nn.Module, loader: list[Tensor]) -> None:
    """Right statistics, and the counter of a long training."""
    recalibrate(model, loader, progress=False)
    for layer in norms(model):
        layer.num_batches_tracked.fill_(1000)


def norms(model: nn.Module) -> list[Any]:
    """The batch norm layers."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def labelled(model: nn.Module, loader: list[Tensor] | None = None) -> list[tuple[Tensor, Tensor]]:
    """Batches with the classes that the model itself gives, so that its accuracy is 1 as it stands."""
    with torch.no_grad():
        return [(x, model.eval()(x).argmax(1)) for x in (loader or batches())]


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    """The metric of labelled batches."""
    return float((output.argmax(1) == batch[1]).double().mean())


def answered(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Batches with what the model itself gives for them."""
    with torch.no_grad():
        return [(x, model.eval()(x)) for x in batches()]


def squared_error(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    """The metric of answered batches: smaller is better."""
    return float((output - batch[1]).square().mean())
