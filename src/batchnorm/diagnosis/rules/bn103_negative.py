"""A variance below zero, left by a cancellation (`E[x^2] - E[x]^2`) in another tool.

Where no rounding explains it (BN104), running_var holds something else than variances.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, misplaced

TITLE = "variance negative"
SEVERITY = "error"
FIX = RECALIBRATE


def look(e: Evidence) -> Said:
    """Count them, unless a layer shows that it is no rounding."""
    if any(map(misplaced, e.layers.values())):
        return
    for layer in e.layers.values():
        count = int((layer.var < 0).sum())
        if count:
            yield layer.name, f"running_var is negative in {count} of {layer.var.numel()} channels"


def _first(variance: float) -> Example:
    model = network()
    norms(model)[0].running_var[0] = variance
    return Example(model, batches())


broken = partial(_first, -0.1)
healthy = partial(_first, 0.0)
