"""torch takes any number as momentum. At 2 the old value weighs -1, so the statistics swing past the data.

Further out they grow without bound, and variances become negative. Not said of frozen layers, nor in eval mode where
the statistics are right. `convert` refuses such a layer.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import having
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, drifts

TITLE = "momentum outside [0, 1]"
SEVERITY = "error"
FIX = "{layer}.momentum = 0.1; " + RECALIBRATE


def look_at(layer: LayerEvidence) -> Said:
    """A momentum that is no weight, where it moves or has moved the statistics away."""
    m = layer.momentum
    if m is None or 0 <= m <= 1:
        return
    if not layer.frozen and (layer.training or drifts(layer) or not layer.sound):
        yield (
            f"momentum is {m:g}, and the weight of the new batch in the average must be in [0, 1]: the old value "
            f"weighs {1 - m:g}, so the statistics swing past the data or away from it, variances below 0"
        )


broken = partial(having, momentum=2.0)
healthy = partial(having, momentum=1.0)
