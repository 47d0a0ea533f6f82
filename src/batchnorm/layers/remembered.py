"""What layers remember of past batches, in native terms: estimators and couplings with windows of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import slab
from batchnorm.layers.couplings import BatchCoupling, Coupling, SecondMoment
from batchnorm.layers.estimators import Pooled, Window
from batchnorm.layers.moving import MABN, PowerNorm, UnifiedNorm
from batchnorm.layers.renorm import Renorm

if TYPE_CHECKING:
    from batchnorm.layers.choices import Recipe
    from batchnorm.layers.module import BatchNorm


# The kernel's arguments, in their order: rings or vectors, then counters.
_PLACES = ("a", "b", "c", "seen_a", "seen_b")
_FLOATS = (None, torch.float32, torch.float64)


class Kept(NamedTuple):
    """The choices as the kernels take them, and where they find the buffers."""

    averages: Any
    # Place, name, rows of channels (1 - n for n values in all), and the dtype where it is not that of the statistics.
    places: tuple[tuple[int, str, int, torch.dtype | None], ...]
    normalises: bool


def _kept(averages: Any, normalises: bool, **buffers: tuple[str, int]) -> Kept:
    def dtype(place: str, name: str) -> torch.dtype | None:
        if place.startswith("seen"):
            return torch.int64
        return torch.float64 if name == "pooled_count" else None

    places = ((_PLACES.index(p), name, rows, dtype(p, name)) for p, (name, rows) in buffers.items())
    return Kept(averages, tuple(places), normalises)


def kept_by(recipe: Recipe, coupling: Coupling, momentum: Any) -> Kept | None:
    """The memory of a recipe's coupling or of its estimator, or None where there is none or the kernels have it not."""
    if isinstance(coupling, MABN | PowerNorm | UnifiedNorm):
        return _of_coupling(coupling)
    estimator = recipe.estimator
    paused = isinstance(momentum, float | int) and momentum == 0
    if paused or type(coupling) not in (BatchCoupling, SecondMoment, Renorm):
        return None
    if type(estimator) is Pooled:
        averages = slab.kept("pooled", correction=estimator.correction, total=True)
        return _kept(averages, False, a=("pooled_count", 0))
    if type(estimator) is Window:
        k = estimator.size
        averages = slab.kept("window", size=k, correction=estimator.correction, total=estimator.total)
        rings = {"a": ("window_mean", k), "b": ("window_var", k), "c": ("window_count", 1 - k)}
        return _kept(averages, False, **rings, seen_a=("window_seen", 0))
    return None


def _of_coupling(coupling: Coupling) -> Kept | None:
    if type(coupling) is PowerNorm:
        averages = slab.kept("power", warmup=coupling.warmup, decay=coupling.backward_decay)
        return _kept(averages, True, a=("backward_v", 1))
    seen = {"seen_a": ("forward_window_seen", 0), "seen_b": ("backward_window_seen", 0)}
    if type(coupling) is MABN:
        k = coupling.window
        averages = slab.kept(
            "mabn", size=k, warmup=coupling.warmup, correct_after=coupling.correct_after, r_max=float(coupling.r_max)
        )
        return _kept(averages, True, a=("forward_window", k - 1), b=("backward_window", k - 1), **seen)
    if type(coupling) is UnifiedNorm and not coupling.filter_outliers:
        k = coupling.window
        averages = slab.kept(
            "unified", size=k, warmup=coupling.warmup, decay=coupling.backward_decay, r_max=float(coupling.r_max)
        )
        rings = {"a": ("forward_window", k), "b": ("backward_window", k), "c": ("backward_average", 1)}
        return _kept(averages, True, **rings, **seen)
    return None


def find(layer: BatchNorm, kept: Kept, channels: int) -> slab.Remembered | None:
    """The layer's buffers, of the bank in use, where the kernels can read and write them."""
    buffers: dict[str, Tensor] = {}
    addresses = [0, 0, 0, 0, 0]
    dtype: Any = None
    own = layer._buffers if layer.active_bank is None else None
    for index, name, rows, counts in kept.places:
        buffer: Any = own[name] if own is not None else layer.stat(name)
        size = rows * channels if rows > 0 else 1 - rows
        if type(buffer) is not Tensor or buffer.numel() != size or not (buffer.is_cpu and buffer.is_contiguous()):
            return None
        if counts is None:
            dtype = dtype or buffer.dtype
        if buffer.dtype is not (counts or dtype):
            return None
        buffers[name], addresses[index] = buffer, buffer.data_ptr()
    if dtype not in _FLOATS:
        return None
    memory = slab.native._native.Memory(*addresses, dtype is torch.float64)
    return slab.Remembered(kept.averages, buffers, memory)
