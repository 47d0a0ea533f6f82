"""A momentum of {LOWEST} or more, and below 1: torch's momentum is the weight of the new batch.

Keras and Flax call the weight of the old value momentum, and the two sum to 1. With 0.99 in torch the statistics
are those of the last batch. Harmless with large batches that are alike. It is the cause where the stored means lie no
further from the actual ones than {SURE} times as far as such an average of the batches' means does; further away,
another cause moved them, and it is a note.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import having
from batchnorm.diagnosis.rules.grounds import SURE as SURE
from batchnorm.diagnosis.rules.grounds import by_statistics, drifts, ruled_out

LOWEST = 0.8  # its counterpart, 0.2, is about the largest momentum in use

TITLE = "momentum of another framework"
SEVERITY = "warning"
FIX = "{layer}.momentum = {right:g}; batchnorm.recalibrate(model, loader)"


def predicts(e: Evidence) -> Effect:
    """Recalibrating helps, and the means are as far off as an average over so few batches would leave them."""
    whole = by_statistics(e)
    off = [layer for layer in e.layers.values() if _looks_like_keras(layer) and drifts(layer)]
    return whole if 2 * sum(map(_explains, off)) >= len(off) else ruled_out(whole)


def _looks_like_keras(layer: Any) -> bool:
    return layer.momentum is not None and LOWEST <= layer.momentum < 1 and not layer.frozen


def _explains(layer: LayerEvidence) -> bool:
    off, batch = layer.mean_off
    m = layer.momentum or 0.0
    return off <= SURE * batch * (m / (2 - m)) ** 0.5


def look(e: Any) -> Said:
    """Layers of a model or a run that move, and whose momentum looks like the weight of the old value."""
    for layer in e.layers.values():
        if _looks_like_keras(layer):
            yield (
                layer.name,
                f"momentum is {layer.momentum:g}, the weight of the NEW batch in torch; it looks like a Keras or Flax "
                "value, the weight of the old one",
                {"right": 1 - layer.momentum},
            )


broken = partial(having, momentum=0.9)
