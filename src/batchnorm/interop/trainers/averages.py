"""Averaged copies of a model (EMA, SWA), as torch, timm, ultralytics and Lightning hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from batchnorm.arguments import arguments, some_batches
from batchnorm.errors import BatchNormError
from batchnorm.interop.trainers.loaders import again
from batchnorm.models import Recalibration
from batchnorm.models import recalibrate as recalibrate_model

# timm's and torch's, timm's first and ultralytics', Lightning's WeightAveraging, ignite's
_HOLDS = ("module", "ema", "_average_model", "ema_model")


def averaged_model(holder: Any) -> nn.Module:
    """The averaged copy that a holder keeps: a module as the one that was copied.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> type(averaged_model(torch.optim.swa_utils.AveragedModel(model))).__name__
        'Sequential'

    Args:
        holder: torch's `AveragedModel`, timm's `ModelEma`, `ModelEmaV2` and `ModelEmaV3`, ultralytics'
            `ModelEMA`, Lightning's `WeightAveraging` during a fit; anything else that has the copy as
            `.module`, `.ema` or `.ema_model`.

    Raises:
        BatchNormError: no copy in it.
    """
    for name in _HOLDS:
        held = getattr(holder, name, None)
        if isinstance(held, AveragedModel):
            return averaged_model(held)
        if isinstance(held, nn.Module):
            return held
    raise BatchNormError(f"holder must keep an averaged model; {type(holder).__name__} has none as {', '.join(_HOLDS)}")


@arguments(loader=some_batches)
def recalibrate(holder: Any, loader: Iterable[Any], **options: Any) -> Recalibration:
    """Give an averaged copy the statistics of its own weights; the model in training is left alone.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> averaged = torch.optim.swa_utils.AveragedModel(model)
        >>> data = torch.randn(64, 2) + 3
        >>> result = recalibrate(averaged, data.split(16))
        >>> torch.allclose(averaged.module[0].running_mean, data.mean(0)), float(model[0].running_mean.sum())
        (True, 0.0)

    Averaged buffers belong to the weights that were averaged, not to the average; those that are not
    averaged to none at all.

    Args:
        holder: as in `averaged_model`.
        loader: batches; a `DataLoader` that a training loop is in the middle of is not disturbed.
        **options: further arguments of `batchnorm.recalibrate`.

    Raises:
        BatchNormError: no averaged copy in the holder; as `batchnorm.recalibrate`.
    """
    return recalibrate_model(averaged_model(holder), again(loader), **options)
