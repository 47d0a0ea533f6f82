"""Some channel holds NaN or infinity.

One bad batch is enough, an average never forgets it, and train mode does not show it. Where variances are NaN and the
means are not, it had one value per channel: its unbiased variance is 0 / 0. In a file weight and
bias are looked at too: a half-precision copy of a variance above 65504 is infinite. In a run the first such layer
is named, at the first look after it happened.
"""

from __future__ import annotations

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network, norms

TITLE = "statistics not finite"
SEVERITY = "error"
FIX = "batchnorm.recalibrate(model, loader)  # batchnorm.convert(model) skips such batches from now on"


def look_at(layer: LayerEvidence) -> Said:
    """Any channel of mean or variance."""
    bad = ~(torch.isfinite(layer.mean) & torch.isfinite(layer.var))
    if not bool(bad.any()):
        return
    means = bool(torch.isfinite(layer.mean).all()) and bool(layer.var[bad].isnan().all())
    why = " (the variances alone: a batch with one value per channel, one sample)" if means else ""
    yield (
        f"{int(bad.sum())} of {layer.mean.numel()} channels hold NaN or infinity{why}; an average never forgets "
        "it, and train mode does not show it"
    )


def broken() -> Example:
    """A NaN in one channel."""
    model = network()
    norms(model)[1].running_mean[1] = torch.nan
    return Example(model, batches())
