"""Whether with another eps the layers receive what they store: eps was changed after training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from batchnorm.diagnosis.experiments.conditions import holding
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import Outcome, effect
from batchnorm.diagnosis.experiments.received import Received

# The first two are those of torch and most others, and of Keras, TensorFlow and what was converted from them.
TRIED = (1e-5, 1e-3, 1e-4, 1e-2, 0.1, 1.0, 10.0)
FINER = (10**0.5, 10**0.25, 10**0.125)  # factors around the best of these
ROUND = 1.1  # times the least misfit: a power of ten that fits as well is what was meant
LEFT = 1.0  # passes that are left to other experiments
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
    """Search on the first batch, where eps is large enough to matter, and try what fits best on every second batch.

    layers holds a `LayerEvidence` by name. With the eps of training every layer receives, behind layers that
    normalise with what they store, the mean and variance that it stores; one that has none before it does in any case.
    """
    live = {n: v for n, v in layers.items() if n in lab.active and v.in_eval.values is not None and v.sound}
    live = {n: v for n, v in live.items() if not v.initial}
    misfits = {n: m for n, v in live.items() if (m := _misfit_of(v, v.in_eval)) is not None}
    before = _mean(misfits.values())
    if not before >= UNFIT or min(misfits.values()) >= max(UNFIT, FITS * before):
        return None

    def tried(eps: float, every: int) -> tuple[float, list[str], Outcome] | None:
        changed = {
            name: lab.active[name]
            for name, layer in live.items()
            if abs(math.log(max(layer.eps, 1e-30) / eps)) > math.log(2)
            and max(layer.eps, eps) > MATTERS * float(layer.var.median())
        }
        if not changed:
            return None
        received = {name: Received() for name in live}
        outcome = lab.run(data, f"eps {eps:g}", holding(changed.values(), "eps", eps), received, every=every)
        found = [m for name, layer in live.items() if (m := _misfit_of(layer, received[name])) is not None]
        return _mean(found), list(changed), outcome

    found: dict[float, float] = {}

    def look(eps: float, left: float) -> None:
        if data.room(0.5 + left + 1 / data.batches) and (one := tried(eps, data.batches)) is not None:
            found[eps] = one[0]

    for number, eps in enumerate(TRIED):
        look(eps, LEFT if number > 1 else 0.0)
    usual = dict(found)
    for factor in FINER if found else ():
        best = min(found, key=found.__getitem__)
        for eps in (best * factor, best / factor):
            look(eps, LEFT)
    if not found or not data.room(0.5):
        return None
    # What somebody wrote has one digit.
    near = float(f"{min(found, key=found.__getitem__):.0e}")
    look(near, LEFT)
    best, round_ = min(found, key=found.__getitem__), min(usual, key=usual.__getitem__)
    best = next((eps for eps in (round_, near) if found.get(eps, math.inf) <= ROUND * found[best]), best)
    one = tried(best, 2)
    if one is None or not one[0] < FITS * before:
        return None
    return AnotherEps(best, one[1], before, one[0], effect(f"eps {best:g}", stored, one[2], lab.scorer))


def _misfit_of(layer: Any, received: Received) -> float | None:
    """How far what is received lies from what is stored, in stored deviations without eps."""
    values = received.values
    used = layer.var > 0
    if values is None or not bool(used.any()):
        return None
    mean, var = values.mean.cpu()[used], values.var(1).cpu()[used]
    shift = (mean - layer.mean[used]) / layer.var[used].sqrt()
    ratio = (var.clamp_min(1e-30) / layer.var[used]).log()
    # The median over channels: a dead channel's ratio says nothing.
    return float(shift.abs().median() + ratio.abs().median())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
