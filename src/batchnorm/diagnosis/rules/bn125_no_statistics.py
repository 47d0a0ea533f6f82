"""Built with `track_running_stats=False`: at inference a result depends on the others in its batch.

Given `eval_loader`, it is a note where running statistics, given to the layer on a copy and measured on the loader, do
no better on the evaluation data in the batches that they come in: large shuffled batches do as well. Else it is a
warning.
"""

from __future__ import annotations

from torch import nn

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches

TITLE = "no running statistics"
SEVERITY = "warning"
FIX = "batchnorm.recalibrate(batchnorm.models.track(model), loader)  # or build it with track_running_stats=True"


def predicts(e: Evidence) -> Effect | None:
    """Running statistics instead of the batch's, in the batches that inference is given; unknown without those."""
    return e.served if "eval_stored" in e.outcomes else None


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
