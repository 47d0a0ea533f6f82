"""The batches' means vary more than {UNLIKE} times as much as those of shuffled samples, and more than chance allows.

Sorted data, one class, one scene a batch. A warning where that is why the statistics are off: recalibrating helps, and
every layer's stored mean lies within {REACH} times the spread of the batches' means, as a moving average that follows
the last batches does, or one over the first few. Otherwise a note: validation loaders often are sorted.
"""

from __future__ import annotations

from functools import partial

import torch

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules import bn116_distributions
from batchnorm.diagnosis.rules.examples import data, network, settle
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts, first_unlike, ruled_out
from batchnorm.diagnosis.rules.grounds import UNLIKE as UNLIKE

TITLE = "batches are not alike"
SEVERITY = "warning"
REACH = 3.0
FIX = "{code}shuffle the loader; if batches are like that in training, train with renorm or freeze towards the end"


def predicts(e: Evidence) -> Effect:
    """Recalibrating helps, and no mean is further off than such batches leave it."""
    whole = by_statistics(e)
    judged = [layer for layer in e.layers.values() if layer.reached and not layer.frozen]
    off = [layer for layer in judged if drifts(layer)] or judged
    return whole if all(map(_explains, off)) else ruled_out(whole)


def _explains(layer: LayerEvidence) -> bool:
    off, batch = layer.mean_off
    return layer.sound and not layer.initial and off <= REACH * batch


def look(e: Evidence) -> Said:
    """Unless they fall in two groups, which is BN116."""
    found = first_unlike(e)
    if found is not None and next(bn116_distributions.look(e), None) is None:
        layer, spread = found
        yield (
            "",
            f"the batches' means at {layer.name or '(root)'} vary {spread:.0f} times as much as those of shuffled "
            "batches: each batch is of its own kind (sorted data, one class, one patient, one scene)",
            {"code": f"{RECALIBRATE}  # then " if by_statistics(e).helps else ""},
        )


def _stretched(ordered: bool) -> Example:
    x = data() * torch.tensor([6.0] + [1.0] * 7)
    model = network(hidden=1)
    settle(model, list(x.split(32)))
    return Example(model, list((x[x[:, 0].argsort()] if ordered else x).split(32)))


broken = partial(_stretched, True)  # sorted by one feature
healthy = partial(_stretched, False)  # as they come
