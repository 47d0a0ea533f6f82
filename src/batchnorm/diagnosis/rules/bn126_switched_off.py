"""A weight below a thousandth of the layer's median, or a bias above {FIXED} times the weight.

The output, or its sign, does not depend on the input.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network, settle

OFF = 1e-3  # of the median |weight|
FIXED = 6.0

TITLE = "channels switched off"
SEVERITY = "note"
FIX = "nothing to repair; such channels can be pruned"


def switched_off(weight: Tensor) -> int:
    """How many channels' weight is almost zero beside the others'."""
    size = weight.abs()
    median = float(size.median())
    return int((size < OFF * median).sum()) if median > 0 else int((size == 0).sum())


def look_at(layer: LayerEvidence) -> Said:
    """Count both kinds."""
    if layer.weight is None or layer.bias is None or layer.weight.numel() < 2:
        return
    size = layer.weight.abs()
    off = switched_off(layer.weight)
    fixed = int(((layer.bias.abs() > FIXED * size) & (size > 0)).sum())
    if off or fixed:
        yield (
            f"{off} of {size.numel()} channels have a weight of almost 0, in {fixed} the bias is more than "
            f"{FIXED:g} times the weight: their output, or its sign, does not depend on the input"
        )


def _with(weight: float, bias: float) -> Example:
    model = network()
    with torch.no_grad():
        model[1].weight[2] = weight
        model[4].bias[1] = bias
    settle(model, batches())
    return Example(model, batches())


broken = partial(_with, 0.0, 10.0)  # one weight of 0, one bias of 10
healthy = partial(_with, 0.01, 5.0)  # a small weight, a large bias
