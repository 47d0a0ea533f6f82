"""A layer has less than half or about twice the updates of most.

It is used several times in a forward, was skipped, or was loaded from elsewhere.
Where most counters are 0, those are the ones that were lost.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

FEWER = 0.5
MORE = 1.9

TITLE = "uneven counters"
SEVERITY = "warning"
FIX = f"{RECALIBRATE}  # pools all uses of a shared layer"
predicts = by_statistics


def look(e: Evidence) -> Said:
    """Against the median of the layers that count."""
    judged = {n: layer for n, layer in e.layers.items() if layer.reached and not layer.frozen}
    counters = {n: layer.counter for n, layer in judged.items() if layer.counter is not None}
    if not counters or max(counters.values()) == 0:
        return
    counted = sorted(count for count in counters.values() if count > 0)
    usual = counted[len(counted) // 2]
    for name, count in counters.items():
        if count < FEWER * usual or count > MORE * usual:
            lost = "the counter was lost in a conversion, or " if count == 0 else ""
            yield (
                name,
                f"num_batches_tracked is {count}, in most layers that count {usual}: {lost}the layer is used several "
                "times in a forward, was skipped, or was loaded from elsewhere",
            )


def _of_1000(count: int) -> Example:
    model = network(hidden=3)
    norms(model)[0].num_batches_tracked.fill_(count)
    return Example(model, batches())


broken = partial(_of_1000, 3)
healthy = partial(_of_1000, 900)
