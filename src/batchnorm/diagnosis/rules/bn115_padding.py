"""More than 5 % of the positions of the model's own input repeat one value at an end, in some samples more.

Sequences `(N, C, L)`, `(N, L, C)` or tokens `(N, L)`, padded left or right, and images with bands. A layer is named
where its mean without these positions lies more than {SHIFT} standard deviations away, or its variance by a factor of
1.3. A warning where the share of padding varies between batches by more than {VARIES}, or the statistics without
padding, tried on a copy, do better than those with it, recalibrated if that helps; of images, which may have a plain
background, only then.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.models.recalibration.recalibrating import recalibrate

SHIFT = 0.25  # standard deviations
LOG_RATIO = 0.26  # a factor of 1.3
VARIES = 0.03  # standard deviation of the batches' share of padding

TITLE = "padding counted as data"
SEVERITY = "warning"
FIX = "batchnorm.convert(model), give its layers the lengths or a mask (batchnorm.masked), and train on or recalibrate"


def matters(layer: LayerEvidence) -> bool:
    """Whether the statistics without padding are other ones."""
    without, whole = layer.without_padding.values, layer.collected.values
    if without is None or whole is None or layer.frozen:
        return False
    scale = (whole.var(0) + layer.eps).sqrt()
    shift = float(((without.mean - whole.mean) / scale).square().mean().sqrt())
    ratio = float(((without.var(0) + layer.eps) / scale.square()).log().square().mean().sqrt())
    return shift > SHIFT or ratio > LOG_RATIO


def predicts(e: Evidence) -> Effect | None:
    """The statistics without padding instead of those with it."""
    tried = e.padding_effect
    if tried is not None and tried.measured and (tried.helps or e.padding_varies <= VARIES):
        return tried
    return None


def look(e: Evidence) -> Said:
    """Layers in which padding matters."""
    if e.images and not (e.padding_effect and e.padding_effect.measured and e.padding_effect.helps):
        return
    for layer in e.layers.values():
        if matters(layer):
            yield (
                layer.name,
                f"{e.padding:.0%} of the input's positions repeat at an end of samples of different length: padding is "
                "counted as data",
            )


def _sequences(padded: bool) -> Example:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 50, generator=generator) + 1
    if padded:
        lengths = torch.arange(64) % 25 + 25
        x = torch.where(torch.arange(50) < lengths[:, None, None], x, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
    recalibrate(model, list(x.split(16)), progress=False)
    return Example(model, list(x.split(16)))


broken = partial(_sequences, True)  # between 25 and 50 of 50 positions
healthy = partial(_sequences, False)  # all of one length
