"""A batch with one value per channel has no variance, and torch refuses it in train mode.

A last batch of one sample, a 1 x 1 feature map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import data, network

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN128"}
TITLE = "one value per channel"
SEVERITY = "error"
FIX = "drop_last=True in the loader, or larger batches, or batchnorm.freeze(model)"


def look(e: Evidence) -> Said:
    """The first such batch."""
    for layer in e.layers.values():
        if layer.inputs.single is not None:
            yield (
                layer.name,
                f"batch {layer.inputs.single} has one value per channel: it has no variance, and training stops there",
            )


def broken() -> Example:
    """The last batch has one sample."""
    return Example(network(), list(data(65).split(32)))


def healthy() -> Example:
    """Two."""
    return Example(network(), list(data(66).split(32)))
