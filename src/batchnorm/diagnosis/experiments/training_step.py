"""One training step, watched and rolled back: which statistics move, how often, and what stays in eval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.diagnosis.experiments.conditions import Layers
from batchnorm.models.batches import call, tensors
from batchnorm.models.modes import is_frozen
from batchnorm.models.state import preserved


@dataclass
class TrainingStep:
    """Per layer: whether its statistics moved, and by how many updates in the backward; nothing of a step refused."""

    moved: dict[str, bool] = field(default_factory=dict)
    updates_in_backward: dict[str, int] = field(default_factory=dict)


def left_in_eval(model: nn.Module, layers: Layers) -> set[str]:
    """Layers that are in eval mode after `model.train()`: what a model that overrides it does."""
    with preserved(model):
        model.train()
        return {name for name, layer in layers.items() if not layer.training}


def left_in_train(model: nn.Module, layers: Layers) -> set[str]:
    """Layers that are in train mode after `model.eval()`, and that nothing freezes."""
    with preserved(model):
        model.eval()
        return {name for name, layer in layers.items() if layer.training and not is_frozen(layer)}


def training_step(model: nn.Module, layers: Layers, batch: Any, forward_fn: Callable[..., Any] | None) -> TrainingStep:
    """Run forward and backward as `model.train()` would, then put back every buffer, gradient and flag.

    That a model cannot take such a step on this batch (one value per channel, no floating output) is itself no finding.
    """
    step = TrainingStep(dict.fromkeys(layers, False), dict.fromkeys(layers, 0))
    before = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in layers.items()}  # pyright: ignore
    try:
        with preserved(model), torch.enable_grad():
            for parameter in model.parameters():
                parameter.grad = None
            model.train()
            total = _sum(call(model, batch, forward_fn))
            # Counted after the forward and after the backward, not in hooks: checkpointing stops a
            # recomputed forward by an exception before its hooks run.
            counts = {name: _count(m) for name, m in layers.items()}
            if total is not None and total.requires_grad:
                total.backward()
            for name, m in layers.items():
                step.updates_in_backward[name] = _count(m) - counts[name]
            for name, m in layers.items():
                mean, var = before[name]
                step.moved[name] = not (_same(mean, m.running_mean) and _same(var, m.running_var))
    except (ValueError, RuntimeError, TypeError):
        return TrainingStep()
    return step


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(a.nan_to_num(), b.nan_to_num())


def _count(module: nn.Module) -> int:
    counter: Any = module.num_batches_tracked
    return 0 if counter is None else int(counter)


def _sum(output: Any) -> Tensor | None:
    parts = [t.float().sum() for t in tensors(output) if t.is_floating_point()]
    return torch.stack(parts).sum() if parts else None
