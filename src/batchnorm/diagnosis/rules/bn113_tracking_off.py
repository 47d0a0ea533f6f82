"""`track_running_stats = False` on a layer that has buffers: train mode moves nothing, eval mode uses the old buffers.

To freeze a layer, `freeze`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN113"}
TITLE = "tracking switched off after construction"
SEVERITY = "warning"
FIX = "{layer}.track_running_stats = True; " + f"{RECALIBRATE}  # batchnorm.freeze(model) to freeze"
predicts = by_statistics


def look(e: Evidence) -> Said:
    """The flag, on a layer with buffers."""
    for layer in e.layers.values():
        if not layer.tracks:
            yield (
                layer.name,
                "track_running_stats was set to False on a layer that has buffers: train mode uses the batch and "
                "moves nothing, eval mode uses the old buffers",
            )


def broken() -> Example:
    """Switched off."""
    model = network()
    norms(model)[0].track_running_stats = False
    return Example(model, batches())


def healthy() -> Example:
    """Left on."""
    return Example(network(), batches())
