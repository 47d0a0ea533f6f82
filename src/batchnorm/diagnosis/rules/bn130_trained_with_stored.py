"""The metric is better with the stored statistics than with exact ones: the weights were trained with them.

Batch norm was in eval while the weights trained: `norm_eval` of detectors, `m.train()` and then `bn.eval()` each
step, a forgotten `.train()`, an actor. Keep the statistics: recalibrating, tried on a copy, makes it worse. A warning
where a layer is in train mode now, so that the next forward moves them; else a note. Layers that a model's own
`train()` leaves in eval count as frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import answered, network, norms, squared_error

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN130"}
TITLE = "trained with the stored statistics"
SEVERITY = "warning"
FIX = "batchnorm.freeze(model)  # keep the statistics; do not recalibrate"


def predicts(e: Evidence) -> Effect:
    """Keeping them instead of recalibrating, where train mode would move them."""
    moves = any(layer.training and not layer.frozen for layer in e.layers.values())
    gain = e.statistics.gain
    kept = None if gain is None else -gain if moves else 0.0
    return replace(e.statistics, gain=kept)


def look(e: Evidence) -> Said:
    """Exact statistics are worse."""
    if e.statistics.harms and not (e.eval_exact.measured and e.eval_exact.helps):
        yield (
            "",
            f"the metric is {e.statistics.before:.4g} with the stored statistics and {e.statistics.after:.4g} with "
            "exact ones: the weights were trained with the stored ones (batch norm in eval)",
        )


def broken() -> Example:
    """Answers that are right under statistics of another scale."""
    model = network()
    with torch.no_grad():
        for layer in norms(model):
            layer.running_mean += 0.7 * layer.running_var.sqrt()
            layer.running_var *= 3
    return Example(model.eval(), answered(model), {"metric": squared_error})


def healthy() -> Example:
    """Answers that are right under exact statistics."""
    model = network()
    return Example(model, answered(model), {"metric": squared_error})
