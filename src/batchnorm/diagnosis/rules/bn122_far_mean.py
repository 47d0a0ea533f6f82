"""A mean more than {FAR} standard deviations from zero, where a variance computed as `E[x^2] - E[x]^2` cancels."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, settle

FAR = 100.0  # standard deviations of the mean from 0

TITLE = "mean far from zero"
SEVERITY = "note"
FIX = "centre the input; batchnorm.convert(model) computes without cancellation"


def look_at(layer: LayerEvidence) -> Said:
    """The farthest channel."""
    distance = (layer.mean.abs() / layer.scale)[layer.var > 0]
    far = distance[torch.isfinite(distance)]
    if far.numel() and float(far.max()) > FAR:
        yield (
            f"the mean lies up to {float(far.max()):.0f} standard deviations from 0: a variance computed as "
            "E[x^2] - E[x]^2, or half precision, loses it"
        )


def _far(offset: float) -> Example:
    model, loader = nn.Sequential(nn.BatchNorm1d(8)), [x + offset for x in batches()]
    settle(model, loader)
    return Example(model, loader)


broken = partial(_far, 500.0)  # at 500
healthy = partial(_far, 50.0)  # at 50
