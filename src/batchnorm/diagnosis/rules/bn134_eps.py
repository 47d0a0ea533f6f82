"""With another eps the layers receive what they store: eps was changed after training.

An export, a conversion from another framework or a configuration file does that. It matters where variances are small,
or the eps of training was large. Powers of ten from 1e-5 to 10 and what lies between are tried, in all layers whose eps
they change by more than a factor of two. It is the cause if what the layers receive at inference then lies at most
{FITS} times as far from what they store as before, if some layer (the first) is as near to what it stores already
and, where there is a metric, if it does as well as recalibrating.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from batchnorm.diagnosis.experiments.another_eps import FITS as FITS
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import answered, batches, network, norms, settle, squared_error

TITLE = "eps is not that of training"
SEVERITY = "warning"
FIX = "for layer in batchnorm.models.batch_norm_layers(model).values(): layer.eps = {eps:g}"


def predicts(e: Evidence) -> Effect | None:
    """The metric with the other eps, at the stored statistics."""
    return None if e.another_eps is None else e.another_eps.effect


def look(e: Evidence) -> Said:
    """The eps with which what is stored fits."""
    other = e.another_eps
    if other is None:
        return
    did, recalibrating = other.effect, e.statistics
    if did.measured and (did.gain or 0.0) < (recalibrating.gain or 0.0) - recalibrating.limit:
        return
    present = ", ".join(sorted({f"{e.layers[name].eps:g}" for name in other.layers}))
    yield (
        other.layers[0] if len(other.layers) == 1 else "",
        f"eps is {present}; with {other.eps:g} the layers receive what they store ({other.after:.2f} standard "
        f"deviations off instead of {other.before:.2f}): eps was changed after training",
        {"eps": other.eps},
    )


def _small(eps: float) -> Example:
    model = network(hidden=3)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight *= 0.1
    settle(model, batches())
    loader = answered(model)
    for layer in norms(model):
        layer.eps = eps
    return Example(model, loader, {"metric": squared_error})


broken = partial(_small, 0.01)  # 0.01 where variances are about 0.003
healthy = partial(_small, 1e-5)  # that of training
