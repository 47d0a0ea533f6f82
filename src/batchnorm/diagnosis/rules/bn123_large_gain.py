"""`weight / sqrt(running_var + eps)` above {GAIN} in a live channel: folding and quantising lose accuracy there."""

from __future__ import annotations

from functools import partial

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, settle

GAIN = 1000.0  # weight / sqrt(running_var + eps)

TITLE = "large gain"
SEVERITY = "note"
FIX = "verify folded and quantised outputs against the original"


def look_at(layer: LayerEvidence) -> Said:
    """The largest of live channels."""
    if layer.weight is None or layer.initial or not layer.sound:
        return
    gain = layer.weight.abs() / layer.scale
    live = gain[(layer.var > 0) & (layer.weight != 0)]
    if live.numel() and float(live.max()) > GAIN:
        yield (
            f"weight / sqrt(running_var + eps) reaches {float(live.max()):.0f}: folding into a convolution, half "
            "precision and quantisation lose accuracy there"
        )


def _gain(weight: float) -> Example:
    layer, loader = nn.BatchNorm1d(8), [x * 1e-4 for x in batches()]
    nn.init.constant_(layer.weight, weight)
    model = nn.Sequential(layer)
    settle(model, loader)
    return Example(model, loader)


broken = partial(_gain, 50.0)  # a gain of 16,000
healthy = partial(_gain, 1.0)  # a gain of 300
