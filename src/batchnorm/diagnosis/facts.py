"""What is known of one layer, wherever it was seen: in a model, in a checkpoint or in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

OFF = 1e-3  # of the median |weight|


class Facts(Protocol):
    """One layer: vectors are float64 on the CPU, None where the place it was seen has none."""

    @property
    def name(self) -> str:
        """Its path in the model."""
        ...

    @property
    def mean(self) -> Tensor | None:
        """running_mean."""
        ...

    @property
    def var(self) -> Tensor | None:
        """running_var."""
        ...

    @property
    def weight(self) -> Tensor | None:
        """The gain."""
        ...

    @property
    def counter(self) -> float | None:
        """num_batches_tracked."""
        ...

    @property
    def momentum(self) -> float | None:
        """The weight of the next batch; None for a cumulative average, and in a file."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Of running_var."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether `freeze` holds the layer."""
        ...

    @property
    def modes(self) -> Mapping[str, int]:
        """Forwards by mode, "train", "eval" and "train without gradients"; empty where nobody counted.

        A live model's are those of its training step, run and rolled back.
        """
        ...


class Seen(Protocol):
    """Layers by path, and where they were seen."""

    @property
    def side(self) -> str:
        """model, checkpoint or run."""
        ...

    @property
    def layers(self) -> Mapping[str, Any]:
        """What is known of each layer."""
        ...


def is_initial(layer: Facts) -> bool:
    """Whether the statistics are those of a new layer."""
    return layer.mean is not None and layer.var is not None and bool((layer.mean == 0).all() and (layer.var == 1).all())


def is_finite(layer: Facts) -> bool:
    """Whether all stored statistics are finite."""
    return all(v is None or bool(torch.isfinite(v).all()) for v in (layer.mean, layer.var))


def switched_off(weight: Tensor) -> int:
    """How many channels' weight is almost zero beside the others'."""
    size = weight.abs()
    median = float(size.median())
    return int((size < OFF * median).sum()) if median > 0 else int((size == 0).sum())
