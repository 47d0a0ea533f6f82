"""Built with `track_running_stats=False`: at inference a result depends on the others in its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN125"}
TITLE = "no running statistics"
SEVERITY = "warning"
FIX = "build it with track_running_stats=True, load the weights, then batchnorm.recalibrate(model, loader)"


def look(e: Evidence) -> Said:
    """Layers that were built without."""
    for name in e.without_statistics:
        yield (
            name,
            "the layer has no running statistics (track_running_stats=False): at inference the result for a sample "
            "depends on the others in its batch",
        )


def broken() -> Example:
    """One such layer."""
    return Example(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False)), batches())


def healthy() -> Example:
    """Layers that track."""
    return Example(network(), batches())
