"""The stored statistics fit what the layer receives with dropout on, {CLOSER} of the distance without it or nearer.

As after torch's `update_bn`, or where dropout precedes batch norm. `recalibrate` measures with dropout off; dropout
behind the last batch norm does not meet it at all.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.diagnosis.rules.grounds import CLOSER as CLOSER
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, fits_dropout

TITLE = "statistics collected with dropout on"
SEVERITY = "warning"
FIX = f"{RECALIBRATE}  # dropout is off while it measures; or move dropout behind the last batch norm"
predicts = by_statistics


def look_at(layer: LayerEvidence) -> Said:
    """Nearer with dropout on than off."""
    if fits_dropout(layer):
        yield (
            f"the stored statistics are those with dropout switched on; at inference the variance differs by a "
            f"factor of {layer.factor:.2f} ({layer.rest_drift:.2f} standard deviations off with dropout, "
            f"{layer.drift:.2f} without)"
        )


def _collected(dropout: float) -> Example:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(dropout), *network(hidden=1))
        torch.optim.swa_utils.update_bn(batches() * 4, model)
    return Example(model.eval(), batches())


broken = partial(_collected, 0.5)  # half of the inputs dropped
healthy = partial(_collected, 0.0)  # none dropped
