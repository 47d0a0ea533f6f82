"""running_var is exactly 0: the channel's input was constant. Such channels can be pruned."""

from __future__ import annotations

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network, settle

TITLE = "constant channels"
SEVERITY = "note"
FIX = "nothing to repair; such channels can be pruned"


def look_at(layer: LayerEvidence) -> Said:
    """Count them."""
    zero = int((layer.var == 0).sum())
    if zero:
        yield f"running_var is exactly 0 in {zero} of {layer.var.numel()} channels: their input was constant"


def broken() -> Example:
    """A row of weights of zero."""
    model = network()
    with torch.no_grad():
        model[0].weight[2].zero_()
    settle(model, batches())
    return Example(model, batches())


def healthy() -> Example:
    """Small, but not constant."""
    model = network()
    with torch.no_grad():
        model[0].weight[2] *= 1e-3
    settle(model, batches())
    return Example(model, batches())
