"""What a layer's momentum is at its next step, and whether it makes the plain average that fades from 0 and 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.errors import check
from batchnorm.layers import EMA, BatchNorm, Cumulative, Diminishing, Recipe
from batchnorm.layers.choices import is_momentum
from batchnorm.layers.choices.situation import resolve


def next_momentum(layer: _BatchNorm) -> float | None:
    """The momentum as a number, of the next step where it is a function of the step; None as it stands."""
    momentum: Any = layer.momentum
    if not callable(momentum):
        return momentum
    tracked = layer.num_batches_tracked
    step = torch.ones((), dtype=torch.long) if tracked is None else tracked + 1
    return torch.as_tensor(resolve(momentum, step)).item()


def check_momentum(name: str, layer: _BatchNorm) -> None:
    """Refuse a number outside [0, 1], which torch accepts silently."""
    where = f"momentum of layer {name or '(root)'!r}"
    check(is_momentum(layer.momentum), where, "in [0, 1], the weight of the new batch", repr(layer.momentum))


def fades_from_start(layer: _BatchNorm) -> bool:
    """Whether the initial 0 and 1 keep the weight (1 - momentum)^t: torch's layers, and averages not debiased."""
    if callable(layer.momentum):
        return False
    if not isinstance(layer, BatchNorm):
        return True
    estimator = layer.recipe.estimator
    return isinstance(estimator, EMA | Cumulative | Diminishing) and not getattr(estimator, "debias", False)


def is_plain(layer: _BatchNorm) -> bool:
    """Whether nothing but its average's decay tells the layer from torch's, so that `convert` takes nothing away."""
    if not isinstance(layer, BatchNorm):
        return True
    estimator = layer.recipe.estimator
    return isinstance(estimator, EMA) and layer.recipe == replace(Recipe(), estimator=EMA(estimator.decay))
