"""The stored mean is more than {DRIFT} standard deviations from what the layer receives, or the variance off by 20 %.

Root mean square over channels; either must be above {SURE} times its sampling error, a variance's from the fourth
moment. The weights moved after the statistics: a late large step, averaging, pruning, merging, quantising, another
subnet. The layer furthest off comes first, by the divergence of the stored from the actual distribution. Frozen layers
are not judged, nor layers whose statistics change nothing in the output. Where each batch is of one kind (BN117),
a layer must also drift in eval mode. Buffers that were read in another order, or assigned to each other, are named:
running_var equals another vector, or a share of {MISPLACED} of it is below zero by more than rounding. A warning where
recalibration, tried on a copy, helps beyond noise, else a note.
"""

from __future__ import annotations

import math

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import DRIFT as DRIFT
from batchnorm.diagnosis.rules.grounds import LOG_RATIO as LOG_RATIO
from batchnorm.diagnosis.rules.grounds import MISPLACED as MISPLACED
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts, misplaced
from batchnorm.diagnosis.rules.grounds import SURE as SURE

TITLE = "statistics lag behind the data"
SEVERITY = "warning"
FIX = RECALIBRATE
predicts = by_statistics


def look(e: Evidence) -> Said:
    """By divergence: a corrupted layer came first so in every trial of benchmarks/attribution."""
    for layer in sorted(e.layers.values(), key=lambda x: -x.divergence):
        if drifts(layer) and not layer.initial and layer.sound:
            share = "" if layer.share is None else f"; alone it causes {layer.share:.0%} of the change in the output"
            error = f"+- {layer.standard_error:.2g}" if math.isfinite(layer.standard_error) else "error unknown"
            other = misplaced(layer)
            found = f"{other}: buffers in the wrong order, or assigned by hand; " if other else ""
            yield (
                layer.name,
                f"{found}the stored mean is {layer.drift:.2f} standard deviations ({error}) from what the layer "
                f"receives, the variance off by a factor of {layer.factor:.2f}{share}",
            )


def broken() -> Example:
    """One mean three standard deviations off."""
    model = network()
    layer = norms(model)[1]
    layer.running_mean += 3 * layer.running_var.sqrt()
    return Example(model, batches())
