"""Hugging Face accelerate: models and loaders that have been through `prepare`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from batchnorm.arguments import a_module, arguments, some_batches, told
from batchnorm.errors import check
from batchnorm.interop.trainers.loaders import again
from batchnorm.interop.trainers.options import everybody
from batchnorm.models import Recalibration
from batchnorm.models import recalibrate as recalibrate_model


@arguments(model=a_module, loader=some_batches)
def recalibrate(accelerator: Any, model: nn.Module, loader: Iterable[Any], **options: Any) -> Recalibration:
    """Recalibrate a prepared model on a prepared loader; all processes must call it, and get the same statistics.

    Example:
        >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # doctest: +SKIP
        >>> recalibrate(accelerator, model, loader)  # doctest: +SKIP

    Each process reads its share, and the moments are merged in the order of ranks. The samples that
    accelerate repeats to make shares equal count once. Reading does not move the loader's own
    position, epoch or generator. Mixed precision is that of the prepared model's forward.

    Args:
        accelerator: the `Accelerator`.
        model: prepared or not.
        loader: prepared, or this process's share as any iterable of batches.
        **options: further arguments of `batchnorm.recalibrate`.

    Raises:
        BatchNormError: as `batchnorm.recalibrate`.
    """
    known = callable(getattr(accelerator, "unwrap_model", None))
    check(known, "accelerator", "an accelerate.Accelerator", told(accelerator))
    inner = accelerator.unwrap_model(model)
    options = {"progress": accelerator.is_local_main_process, **options}
    return recalibrate_model(inner, again(loader), process_group=everybody(), **options)
