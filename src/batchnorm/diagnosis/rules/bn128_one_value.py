"""A batch with one value per channel has no variance, and torch refuses it in train mode.

A last batch of one sample, a 1 x 1 feature map.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import data, network

TITLE = "one value per channel"
SEVERITY = "error"
FIX = "drop_last=True in the loader, or larger batches, or batchnorm.freeze(model)"


def look_at(layer: LayerEvidence) -> Said:
    """The first such batch."""
    if layer.inputs.single is not None:
        yield f"batch {layer.inputs.single} has one value per channel: it has no variance, and training stops there"


def _samples(count: int) -> Example:
    return Example(network(), list(data(count).split(32)))


broken = partial(_samples, 65)  # the last batch has one
healthy = partial(_samples, 66)
