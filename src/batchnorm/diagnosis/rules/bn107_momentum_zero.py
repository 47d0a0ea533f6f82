"""Momentum 0 stops the update, but train mode still normalises with the batch.

So the network is not trained with the statistics that inference uses. Also found in eval mode, where the layer drifts:
0.0 is not `None`, the cumulative average.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, having, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts

TITLE = "momentum 0 in train mode"
SEVERITY = "warning"
FIX = f"{RECALIBRATE}  # for what is trained already; batchnorm.freeze(model) before training on"
predicts = by_statistics


def look_at(layer: LayerEvidence) -> Said:
    """Momentum 0 where the layer normalises with the batch, or drifts."""
    if layer.momentum == 0 and not layer.frozen and (layer.training or drifts(layer)):
        yield (
            "momentum is 0: in train mode the layer normalises with the batch and moves nothing, so the network "
            "is not trained with the statistics that inference uses"
        )


def broken() -> Example:
    """A new layer that never moves."""
    model = network()
    norms(model)[0].reset_running_stats()
    norms(model)[0].momentum = 0.0
    return Example(model, batches())


healthy = partial(having, momentum=None)
