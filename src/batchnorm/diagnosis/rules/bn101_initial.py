"""running_mean is 0 and running_var is 1 in every channel, and that is not what the layer receives.

The layer was never trained, or a checkpoint, an EMA copy, a federated average or an adapter left the buffers out.
A layer with momentum 0, or with tracking switched off, is BN107 or BN113 instead.
"""

from __future__ import annotations

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts

TITLE = "statistics at their initial value"
SEVERITY = "error"
FIX = f"{RECALIBRATE}  # and copy, save and load buffers too, not only parameters()"
predicts = by_statistics


def look_at(layer: LayerEvidence) -> Said:
    """A new layer in front of data that are standard already is not wrong."""
    if layer.initial and layer.momentum != 0 and layer.tracks and layer.reached and (drifts(layer) or layer.frozen):
        yield "running_mean is 0 and running_var is 1 in every channel: the statistics were never updated or loaded"


def broken() -> Example:
    """One layer reset."""
    model = network()
    norms(model)[0].reset_running_stats()
    return Example(model, batches())


def healthy() -> Example:
    """New statistics in front of standard data."""
    return Example(nn.Sequential(nn.BatchNorm1d(8)), batches())
