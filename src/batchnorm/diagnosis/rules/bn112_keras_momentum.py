"""A momentum of {LOWEST} or more, and below 1: torch's momentum is the weight of the new batch.

Keras and Flax call the weight of the old value momentum, and the two sum to 1. With 0.99 in torch the statistics
are those of the last batch. Harmless with large batches that are alike.
"""

from __future__ import annotations

from batchnorm.diagnosis.facts import Seen
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import by_statistics

LOWEST = 0.5

CODES = {"model": "BN112"}
TITLE = "momentum of another framework"
SEVERITY = "warning"
FIX = "{layer}.momentum = {right:g}; batchnorm.recalibrate(model, loader)"

predicts = by_statistics


def look(e: Seen) -> Said:
    """Layers that move, and whose momentum looks like the weight of the old value."""
    for layer in e.layers.values():
        if layer.momentum is not None and LOWEST <= layer.momentum < 1 and not layer.frozen:
            yield (
                layer.name,
                f"momentum is {layer.momentum:g}, the weight of the NEW batch in torch; it looks like a Keras or Flax "
                "value, the weight of the old one",
                {"right": 1 - layer.momentum},
            )


def broken() -> Example:
    """0.9 in one layer."""
    model = network()
    norms(model)[0].momentum = 0.9
    return Example(model, batches())


def healthy() -> Example:
    """The value of torch."""
    return Example(network(), batches())
