"""Whether with another eps the layers receive what they store: eps was changed after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchnorm.diagnosis.experiments.conditions import with_eps
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import Outcome, effect
from batchnorm.diagnosis.experiments.received import Received

USUAL = (1e-5, 1e-3)  # torch and most others; Keras, TensorFlow and what was converted from them
MATTERS = 0.05  # of a layer's median variance: a smaller eps changes nothing
UNFIT = 0.2  # mean in standard deviations and log variance together: less is no reason to ask
FITS = 0.34  # of the misfit before


@dataclass(frozen=True)
class AnotherEps:
    """An eps with which the stored statistics fit: in which layers, the misfit before and after, and what it does."""

    eps: float
    layers: list[str]
    before: float
    after: float
    effect: Effect


def another_eps(lab: Laboratory, data: Data, layers: Mapping[str, Any], stored: Outcome) -> AnotherEps | None:
    """Try the usual values, on every second batch, where eps is large enough to matter.

    layers holds a `LayerEvidence` by name. With the eps of training every layer receives, behind layers that
    normalise with what they store, the mean and variance that it stores.
    """
    live = {n: v for n, v in layers.items() if n in lab.active and v.in_eval.values is not None and v.sound}
    live = {n: v for n, v in live.items() if not v.initial}
    before = _misfit(live, {name: layer.in_eval for name, layer in live.items()})
    best = None
    for eps in USUAL:
        changed = {
            name: lab.active[name]
            for name, layer in live.items()
            if abs(math.log(max(layer.eps, 1e-30) / eps)) > math.log(2)
            and max(layer.eps, eps) > MATTERS * float(layer.var.median())
        }
        if not changed or before < UNFIT or not data.room(0.5):
            continue
        received = {name: Received() for name in live}
        outcome = lab.tried(data, f"eps {eps:g}", with_eps(changed, eps), received)
        after = _misfit(live, received)
        if after < FITS * before and (best is None or after < best.after):
            did = effect(f"eps {eps:g}", stored, outcome, lab.scorer)
            best = AnotherEps(eps, list(changed), before, after, did)
    return best


def _misfit(layers: Mapping[str, Any], received: Mapping[str, Received]) -> float:
    """The mean over layers of how far what is received lies from what is stored, in stored deviations without eps."""
    found = []
    for name, layer in layers.items():
        values = received[name].values
        used = layer.var > 0
        if values is None or not bool(used.any()):
            continue
        mean, var = values.mean.cpu()[used], values.var(1).cpu()[used]
        shift = (mean - layer.mean[used]) / layer.var[used].sqrt()
        ratio = (var.clamp_min(1e-30) / layer.var[used]).log()
        # The median over channels: a dead channel's ratio says nothing.
        found.append(float(shift.abs().median() + ratio.abs().median()))
    return sum(found) / len(found) if found else math.nan
