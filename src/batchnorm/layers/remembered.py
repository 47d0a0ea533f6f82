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


class Kept(NamedTuple):
    """The choices as the kernels take them; the buffers by place, with how many rows of channels each has."""

    averages: Any
    # By the places of the kernel's arguments: name and rows; 0 rows are one value in all, a negative number one a row.
    places: dict[str, tuple[str, int]]
    normalises: bool


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
        return Kept(averages, {"a": ("pooled_count", 0)}, False)
    if type(estimator) is Window:
        k = estimator.size
        averages = slab.kept("window", size=k, correction=estimator.correction, total=estimator.total)
        rings = {
            "a": ("window_mean", k),
            "b": ("window_var", k),
            "c": ("window_count", -k),
            "seen_a": ("window_seen", 0),
        }
        return Kept(averages, rings, False)
    return None


def _of_coupling(coupling: Coupling) -> Kept | None:
    if type(coupling) is PowerNorm:
        averages = slab.kept("power", warmup=coupling.warmup, decay=coupling.backward_decay)
        return Kept(averages, {"a": ("backward_v", 1)}, True)
    seen = {"seen_a": ("forward_window_seen", 0), "seen_b": ("backward_window_seen", 0)}
    if type(coupling) is MABN:
        k = coupling.window
        averages = slab.kept(
            "mabn", size=k, warmup=coupling.warmup, correct_after=coupling.correct_after, r_max=float(coupling.r_max)
        )
        return Kept(averages, {"a": ("forward_window", k - 1), "b": ("backward_window", k - 1), **seen}, True)
    if type(coupling) is UnifiedNorm and not coupling.filter_outliers:
        k = coupling.window
        averages = slab.kept(
            "unified", size=k, warmup=coupling.warmup, decay=coupling.backward_decay, r_max=float(coupling.r_max)
        )
        rings = {"a": ("forward_window", k), "b": ("backward_window", k), "c": ("backward_average", 1)}
        return Kept(averages, {**rings, **seen}, True)
    return None


def find(layer: BatchNorm, kept: Kept, channels: int) -> slab.Remembered | None:
    """The layer's buffers, of the bank in use, where the kernels can read and write them."""
    buffers: dict[str, Tensor] = {}
    addresses: dict[str, int] = {}
    dtype: Any = None
    for place, (name, rows) in kept.places.items():
        buffer = layer._buffers[name] if layer.active_bank is None else layer.stat(name)
        size = rows * channels if rows > 0 else max(1, -rows)
        if type(buffer) is not Tensor or buffer.numel() != size or not (buffer.is_cpu and buffer.is_contiguous()):
            return None
        wanted = torch.int64 if place.startswith("seen") else torch.float64 if name == "pooled_count" else dtype
        if wanted is None:
            wanted = dtype = buffer.dtype
        if buffer.dtype is not wanted or buffer.is_neg():
            return None
        buffers[name], addresses[place] = buffer, buffer.data_ptr()
    if dtype not in (None, torch.float32, torch.float64):
        return None
    memory = slab.native._native.Memory(**addresses, wide=dtype is torch.float64)
    return slab.Remembered(kept.averages, buffers, memory)
