"""`track_running_stats = False` on a layer that has buffers: train mode moves nothing, eval mode uses the old buffers.

To freeze a layer, `freeze`.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import having
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

TITLE = "tracking switched off after construction"
SEVERITY = "warning"
FIX = "{layer}.track_running_stats = True; " + f"{RECALIBRATE}  # batchnorm.freeze(model) to freeze"
predicts = by_statistics


def look_at(layer: LayerEvidence) -> Said:
    """The flag, on a layer with buffers."""
    if not layer.tracks:
        yield (
            "track_running_stats was set to False on a layer that has buffers: train mode uses the batch and "
            "moves nothing, eval mode uses the old buffers"
        )


broken = partial(having, track_running_stats=False)
