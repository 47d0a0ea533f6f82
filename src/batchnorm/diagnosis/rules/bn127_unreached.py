"""No forward on the given data passed through the layer; nothing is said about it."""

from __future__ import annotations

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network

TITLE = "layer never reached"
SEVERITY = "note"
FIX = "pass data that use it, or forward_fn="


def look_at(layer: LayerEvidence) -> Said:
    """Layers without data."""
    if not layer.reached and layer.inputs.single is None:
        yield "no forward reached the layer: nothing is known of what it would receive"


def broken() -> Example:
    """A layer beside the network."""
    model = network()
    model[0].unused = nn.BatchNorm1d(8)
    return Example(model, batches())
