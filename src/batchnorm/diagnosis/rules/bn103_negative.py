"""A variance below zero, left by a cancellation (`E[x^2] - E[x]^2`) in another tool."""

from __future__ import annotations

from batchnorm.diagnosis.facts import Seen
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE

CODES = {"model": "BN103"}
TITLE = "variance negative"
SEVERITY = "error"
FIX = RECALIBRATE


def look(e: Seen) -> Said:
    """Count them."""
    for layer in e.layers.values():
        if layer.var is None:
            continue
        count = int((layer.var < 0).sum())
        if count:
            yield layer.name, f"running_var is negative in {count} of {layer.var.numel()} channels"


def broken() -> Example:
    """One channel below zero."""
    model = network()
    norms(model)[0].running_var[0] = -0.1
    return Example(model, batches())


def healthy() -> Example:
    """One channel of exactly zero."""
    model = network()
    norms(model)[0].running_var[0] = 0.0
    return Example(model, batches())
