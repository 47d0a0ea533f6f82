"""running_var is exactly 0: the channel's input was constant. Such channels can be pruned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, network, settle

TITLE = "constant channels"
SEVERITY = "note"
FIX = "nothing to repair; such channels can be pruned"


def look_at(layer: Any) -> Said:
    """Count them, in a layer of a model or of a file."""
    if layer.var is not None and (zero := int((layer.var == 0).sum())):
        yield f"running_var is exactly 0 in {zero} of {layer.var.numel()} channels: their input was constant"


def _scaled(by: float) -> Example:
    """One channel's weights, small or zero."""
    model = network()
    with torch.no_grad():
        model[0].weight[2] *= by
    settle(model, batches())
    return Example(model, batches())


broken = partial(_scaled, 0.0)
healthy = partial(_scaled, 1e-3)
