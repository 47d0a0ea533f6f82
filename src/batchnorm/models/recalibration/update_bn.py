"""The name people know, with the signature they know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from batchnorm.arguments import a_device_with_values, a_module_with_values, arguments, some_batches
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.recalibration.recalibrating import recalibrate
from batchnorm.models.recalibration.result import Recalibration


@arguments(loader=some_batches, model=a_module_with_values, device=a_device_with_values)
def update_bn(
    loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None
) -> Recalibration | None:
    """Recompute running statistics as `torch.optim.swa_utils.update_bn` does, pooled exactly and with dropout off.

    Example:
        >>> import torch
        >>> from batchnorm.models import update_bn
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout())
        >>> averaged = torch.optim.swa_utils.AveragedModel(model)
        >>> data = torch.randn(100, 3) + 5
        >>> result = update_bn(data.split(30), averaged)
        >>> torch.allclose(averaged.module[0].running_mean, data.mean(0))
        True

    Arguments are torch's. What differs: batches weigh what they hold, the variance is that of all
    values, dropout is off, layers see what inference gives them, and an error or an empty loader
    leaves the model as it was. See `recalibrate` for everything else.

    Args:
        loader: batches; of a tuple or list the first element goes to the model.
        model: its batch norm layers are updated in place; a model without any is left alone.
        device: where batches go; by default where the model is.

    Raises:
        BatchNormError: as `recalibrate`.
    """
    if not any(layer.running_mean is not None for layer in batch_norm_layers(model).values()):
        return None
    return recalibrate(model, loader, device=device)
