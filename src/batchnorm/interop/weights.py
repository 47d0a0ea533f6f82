"""What a reader of any format hands over: named layers, and for each tensor its place and its layout."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from batchnorm.interop.layouts import from_torch, to_torch
from batchnorm.interop.statistics import Bias, decode

Array = Any  # a numpy array; its dtype is the file's


class Slot(NamedTuple):
    """Where a tensor lies in the format's own flat collection, and how its axes are arranged there."""

    key: Hashable
    layout: str


@dataclass(frozen=True)
class Layer:
    """One layer of a foreign model: its kind, its slots by torch's names, and the settings its format records.

    kind is "batch_norm", "conv", "conv_transpose", "linear", "affine" (another normalization's
    weight and bias) or "other". guessed says that a convolution may as well be a transposed one,
    which some formats do not record. momentum is torch's, the weight of the new batch; None where
    the format does not hold it.
    """

    name: str
    kind: str
    slots: dict[str, Slot]
    eps: float | None = None
    momentum: float | None = None
    codec: str = "plain"
    guessed: bool = False

    def as_kind(self, kind: str) -> Layer:
        """The same layer once its kind is known from its partner."""
        if kind == self.kind or not self.guessed:
            return self
        slots = {role: Slot(s.key, s.layout.replace(self.kind, kind)) for role, s in self.slots.items()}
        return replace(self, kind=kind, slots=slots, guessed=False)


@dataclass
class Weights:
    """A foreign model's tensors and layers.

    ordered: the layers stand in the order in which the model defines or calls them.
    variance: "biased" or "unbiased", what the format's running variance estimates.
    initial_variance: the value a running variance starts from, None where none is left in it.
    source: the object or file, for the writer that goes with the format.
    """

    format: str
    raw: dict[Any, Array]
    layers: list[Layer]
    ordered: bool
    variance: Bias = "biased"
    initial_variance: float | None = 1.0
    source: Any = field(default=None, repr=False)

    def values(self, layer: Layer, *, repair: bool = False) -> dict[str, Array]:
        """A layer's tensors in torch's names, layouts and meaning."""
        arrays = {role: to_torch(slot.layout, self.raw[slot.key]) for role, slot in layer.slots.items()}
        if layer.kind == "batch_norm":
            return decode(layer.codec, arrays, layer.momentum, repair=repair)
        return arrays

    def signature(self, layer: Layer) -> tuple[int, ...]:
        """The shape that two layers must share to be partners, in torch's layout."""
        role = "running_mean" if layer.kind == "batch_norm" else "weight"
        slot = layer.slots.get(role) or next(iter(layer.slots.values()))
        return tuple(to_torch(slot.layout, self.raw[slot.key]).shape)

    def placed(self, slot: Slot, value: Array) -> Array:
        """A tensor in torch's layout as it has to lie in this slot."""
        old = self.raw[slot.key]
        with np.errstate(over="ignore"):  # the caller asks whether it stayed finite
            return np.array(from_torch(slot.layout, value, old.shape), dtype=old.dtype, order="C")
