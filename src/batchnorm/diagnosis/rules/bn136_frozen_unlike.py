"""Frozen layers whose statistics are not what they receive, and the metric is better with exact ones.

Layers that `freeze` holds, or that the model's own `train()` leaves in eval. Statistics that the weights were trained
with are right however far from the data they lie (a note at most, BN130); these the weights were not trained with: they
are another model's, or were frozen too early. Exact statistics are tried in these layers alone, on half of the batches.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import answered, network, norms, squared_error
from batchnorm.models.modes import freeze

TITLE = "frozen with statistics that the weights were not trained with"
SEVERITY = "warning"
FIX = (
    "batchnorm.unfreeze(model); batchnorm.recalibrate(model, loader); batchnorm.freeze(model)  "
    "# or keep them, and train on so"
)
predicts = attrgetter("frozen")  # exact statistics in the frozen layers


def look(e: Evidence) -> Said:
    """The frozen layer furthest off."""
    if e.frozen is not None and e.frozen.measured and e.frozen.helps:
        worst = max((v for v in e.layers.values() if v.frozen and v.reached), key=lambda v: v.divergence)
        yield (
            worst.name,
            f"the frozen mean is {worst.drift:.2f} standard deviations from what the layer receives, and exact "
            "statistics in the frozen layers do better: the weights were not trained with these",
        )


def _frozen(moved: float) -> Example:
    model = network()
    loader = answered(model)
    with torch.no_grad():
        for layer in norms(model):
            layer.running_mean += moved * layer.running_var.sqrt()
    return Example(freeze(model), loader, {"metric": squared_error})


broken = partial(_frozen, 2.0)  # means two standard deviations off
healthy = partial(_frozen, 0.0)  # frozen as trained
