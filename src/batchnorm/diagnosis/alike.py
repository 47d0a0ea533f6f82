"""What several kinds of evidence see alike: the same rule, or the same measure of a layer's weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from batchnorm.diagnosis.findings import Said

OFF = 1e-3  # of the median |weight|


def keras_momentum(e: Any, then: str = "") -> Said:
    """A momentum that looks like the weight of the old value; then is what the fix goes on with."""
    for layer in e.layers.values():
        if layer.momentum is not None and 0.5 <= layer.momentum < 1 and not layer.frozen:
            yield (
                layer.name,
                f"momentum is {layer.momentum:g}, the weight of the NEW batch in torch; it looks like a Keras or Flax "
                "value, the weight of the old one",
                f"layer.momentum = {1 - layer.momentum:g}{then}",
            )


def switched_off(weight: Tensor) -> int:
    """How many channels' weight is almost zero beside the others'."""
    size = weight.abs()
    median = float(size.median())
    return int((size < OFF * median).sum()) if median > 0 else int((size == 0).sum())
