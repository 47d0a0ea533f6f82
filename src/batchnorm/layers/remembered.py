"""What layers remember of past batches, in native terms: estimators and couplings with windows of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.errors import OperandError
from batchnorm.kernels import slab
from batchnorm.layers.choices.averaging import MABN, PowerNorm, UnifiedNorm
from batchnorm.layers.choices.couplings import BatchCoupling, Coupling, SecondMoment
from batchnorm.layers.choices.estimators import Pooled, Window
from batchnorm.layers.choices.renorm import Renorm
from batchnorm.layers.naming import describe

if TYPE_CHECKING:
    from batchnorm.layers.choices.recipe import Recipe


# The kernel's arguments, in their order: rings or vectors, then counters.
_PLACES = ("a", "b", "c", "seen_a", "seen_b")
_RUNNING = ("running_mean", "running_var")
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
    # The kernels' window corrects by counts; precisions are corrected in torch.
    if type(estimator) is Window and recipe.policy.weights == "frequency":
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
    if type(coupling) is MABN and coupling.window > 1:
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


class Buffers:
    """The buffers of one layer that a forward worked with, for its backward to find again.

    Between the two a bank, a pause or `functional_call` may end, and then the backward still belongs to the tensors
    of its forward. Or the layer's own tensors may be exchanged, by `.to()` or `load_state_dict(assign=True)`: then it
    belongs to the ones that took their place. The layer counts such exchanges.
    """

    __slots__ = ("_bank", "_exchanges", "_held", "_layer", "_sizes")

    def __init__(self, layer: Any, names: Iterable[str]) -> None:
        self._layer, self._bank, self._exchanges = layer, layer.active_bank, layer.exchanges
        self._held: dict[str, Tensor] = {name: layer.stat(name) for name in (*_RUNNING, *names)}
        self._sizes = [held.numel() for held in self._held.values()]

    def now(self) -> dict[str, Tensor]:
        """The tensors by name, as they are at this moment.

        Raises:
            OperandError: a buffer of another size than it had in the forward.
        """
        if self._layer.exchanges != self._exchanges:
            self._held = {name: self._successor(name, held) for name, held in self._held.items()}
            self._exchanges = self._layer.exchanges
        for (name, held), size in zip(self._held.items(), self._sizes, strict=True):
            if held.numel() != size:
                raise OperandError(
                    f"{name} of {describe(self._layer)} must keep its {size} values between forward and backward; "
                    f"it has {held.numel()}, in shape {tuple(held.shape)}"
                )
        return self._held

    def _successor(self, name: str, held: Tensor) -> Tensor:
        new = self._layer.stat_of(self._bank, name)
        return held if new is None else new


class Remembered:
    """What the kernels remember for one layer: the choices, and the buffers, found anew for every call."""

    __slots__ = ("_buffers", "_channels", "_kept")

    def __init__(self, layer: Any, kept: Kept, channels: int) -> None:
        self._kept, self._channels = kept, channels
        self._buffers = Buffers(layer, [name for _, name, _, _ in kept.places])

    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name."""
        return self._buffers.now()

    def places(self) -> slab.Remembered | None:
        """Where a kernel finds them in the call that follows, or None where it cannot read and write them."""
        held = self._buffers.now()
        places: list[Tensor | None] = [None] * len(_PLACES)
        dtype: Any = None
        for index, name, rows, counts in self._kept.places:
            buffer, size = held[name], rows * self._channels if rows > 0 else 1 - rows
            if type(buffer) is not Tensor or buffer.numel() != size or not (buffer.is_cpu and buffer.is_contiguous()):
                return None
            if counts is None:
                dtype = dtype or buffer.dtype
            if buffer.dtype is not (counts or dtype):
                return None
            places[index] = buffer
        return slab.Remembered(self._kept.averages, tuple(places)) if dtype in _FLOATS else None
