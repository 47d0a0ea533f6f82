"""The layer's class computes something of its own, and torch's batch norm with the same buffers does better.

The weights were trained with torch's: a trainer's conversion to SyncBatchNorm replaced the class, or the file is of
another network. It is the cause if it does better than recalibrating; it is tried where there is a metric.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import answered, network, norms, squared_error

TITLE = "class is not that of training"
SEVERITY = "warning"
FIX = "# build the model with torch's batch norm in the place of {kind}, and load the same weights"
predicts = attrgetter("as_batch_norm")  # the metric with torch's forward, at the stored statistics


def look(e: Evidence) -> Said:
    """All such layers at once."""
    did, recalibrating = e.as_batch_norm, e.statistics
    if did is None or not did.helps or (did.gain or 0.0) < (recalibrating.gain or 0.0) + recalibrating.limit:
        return
    kind = next(layer.kind for layer in e.layers.values() if not layer.kind.startswith("BatchNorm"))
    yield (
        "",
        f"{kind} computes something else than batch norm, and the weights fit batch norm: the class was replaced after "
        "training, or during it (a conversion to SyncBatchNorm does that)",
        {"kind": kind},
    )


class _Scaling(nn.BatchNorm1d):
    """Subtracts no mean."""

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C)`."""
        var = input.var(0) if self.training or self.running_var is None else self.running_var
        return input / (var + self.eps).sqrt() * self.weight + self.bias


def _of(kind: Any) -> Example:
    model = network()
    loader = answered(model)
    for layer in norms(model):
        layer.__class__ = kind
    return Example(model, loader, {"metric": squared_error})


broken = partial(_of, _Scaling)  # a class that only scales
healthy = partial(_of, nn.BatchNorm1d)  # torch's
