"""One training step, watched and rolled back: which statistics move, how often, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.batches import call
from batchnorm.models.state import preserved


@dataclass
class Probe:
    """Per layer: whether its statistics moved in a training step, and by how many updates in the backward."""

    moved: dict[str, bool] = field(default_factory=dict)
    updates_in_backward: dict[str, int] = field(default_factory=dict)


def probe_training_step(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    batch: Any,
    forward_fn: Callable[..., Any] | None,
) -> Probe | None:
    """Run forward and backward as `model.train()` would, then put everything back.

    None if the model cannot take such a step on this batch (one value per channel, no floating
    output); that is itself no finding.
    """
    probe = Probe({name: False for name in modules}, dict.fromkeys(modules, 0))
    before = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in modules.items()}  # pyright: ignore
    try:
        with preserved(model), torch.enable_grad():
            for parameter in model.parameters():
                parameter.grad = None
            model.train()
            total = _sum(call(model, batch, forward_fn))
            # Counted after the forward and after the backward, not in hooks: checkpointing stops a
            # recomputed forward by an exception before its hooks run.
            counts = {name: _count(m) for name, m in modules.items()}
            if total is not None and total.requires_grad:
                total.backward()
            for name, m in modules.items():
                probe.updates_in_backward[name] = _count(m) - counts[name]
            for name, m in modules.items():
                mean, var = before[name]
                probe.moved[name] = not (_same(mean, m.running_mean) and _same(var, m.running_var))
        return probe
    except (ValueError, RuntimeError, TypeError):
        return None


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(a.nan_to_num(), b.nan_to_num())


def _count(module: _BatchNorm) -> int:
    return 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)


def _sum(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output.float().sum() if output.is_floating_point() else None
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    parts = [part for part in map(_sum, items) if part is not None]
    return torch.stack(parts).sum() if parts else None
