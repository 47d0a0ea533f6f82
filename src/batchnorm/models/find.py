"""Which modules of a model are batch norm layers, by name, each once."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.errors import BatchNormError


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch norm layer of a model by its path: torch's, this package's, and subclasses of either.

    Example:
        >>> import torch
        >>> from batchnorm.models import batch_norm_layers
        >>> list(batch_norm_layers(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))))
        ['1']

    A layer used under several names appears once, under its first.

    Raises:
        BatchNormError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise BatchNormError(f"model must be a torch.nn.Module; it was {type(model).__name__}")
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def present_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those of a model that must have some; an error if there is none."""
    layers = batch_norm_layers(model)
    if not layers:
        raise BatchNormError(f"model must contain a batch norm layer; {type(model).__name__} has none")
    return layers


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those that hold running statistics; an error if there is none."""
    layers = {name: m for name, m in batch_norm_layers(model).items() if m.running_mean is not None}
    if not layers:
        raise BatchNormError(
            f"model must contain a batch norm layer with running statistics; {type(model).__name__} has none"
        )
    return layers
