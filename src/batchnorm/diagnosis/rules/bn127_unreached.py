"""No forward on the given data passed through the layer; nothing is said about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN127"}
TITLE = "layer never reached"
SEVERITY = "note"
FIX = "pass data that use it, or forward_fn="


def look(e: Evidence) -> Said:
    """Layers without data."""
    for layer in e.layers.values():
        if not layer.reached and layer.inputs.single is None:
            yield layer.name, "no forward reached the layer: nothing is known of what it would receive"


def broken() -> Example:
    """A layer beside the network."""
    model = network()
    model[0].unused = nn.BatchNorm1d(8)
    return Example(model, batches())


def healthy() -> Example:
    """All in use."""
    return Example(network(), batches())
