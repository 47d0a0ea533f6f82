"""Running statistics for layers that were built without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_module, arguments
from batchnorm.models.find import Model, present_layers

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@arguments(model=a_module)
def track(model: Model) -> Model:
    """Give layers built with `track_running_stats=False` running statistics, still at 0 and 1.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2, track_running_stats=False))
        >>> data = torch.randn(64, 2) + 3
        >>> _ = batchnorm.recalibrate(batchnorm.models.track(model), data.split(16))
        >>> torch.allclose(model[0].running_mean, data.mean(0))
        True

    From then on train mode moves them and eval mode normalises with them: recalibrate before the model is used.
    Layers that have statistics stay as they are.

    Args:
        model: changed in place and returned.

    Raises:
        BatchNormError: no batch norm layer.
    """
    for layer in present_layers(model).values():
        if layer.running_mean is None:
            _give(layer)
    return model


@contextmanager
def tracking(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """These layers, which have no statistics, have some within."""
    taken = [layer for layer in layers if layer.running_mean is None]
    try:
        for layer in taken:
            _give(layer)
        yield
    finally:
        for layer in taken:
            layer.track_running_stats = False
            for name in BUFFERS:
                setattr(layer, name, None)


def _give(layer: _BatchNorm) -> None:
    like: nn.Parameter | None = layer.weight
    device = None if like is None else like.device
    # Never narrower than float32, whatever the weights are.
    dtype = torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, dtype=dtype, device=device)
    layer.running_var = torch.ones(layer.num_features, dtype=dtype, device=device)
    layer.num_batches_tracked = torch.tensor(0, device=device)
