"""`requires_grad_(False)` does not stop buffers: in a training step, run and rolled back, the statistics moved.

A warning where moving them to what the layer receives now makes a difference, else a note.
"""

from __future__ import annotations

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

TITLE = "frozen parameters, moving statistics"
SEVERITY = "warning"
FIX = "{code}batchnorm.freeze(model), after loading the statistics from before"
predicts = by_statistics


def look(e: Evidence) -> Said:
    """No gradient for weight and bias, and a training step moves the statistics."""
    # Where they have moved already and the ones from before are lost.
    code = f"{RECALIBRATE}; batchnorm.freeze(model)  # or " if by_statistics(e).helps else ""
    for layer in e.layers.values():
        if e.step and e.step.moved.get(layer.name) and layer.trains_affine is False:
            yield (
                layer.name,
                "weight and bias do not require gradients, but a training step moves the running statistics",
                {"code": code},
            )


def broken() -> Example:
    """Frozen by requires_grad."""
    model = network()
    norms(model)[0].requires_grad_(False)
    return Example(model, batches())
