"""More than 1 % of the initial 0 and 1 is left in the statistics, and the layer drifts for that reason.

The share is read from means and variances: stored = (1 - s) actual + s initial, by least squares over the channels,
which must leave less than {LEFT_OVER} of the distance. Where it is what the momentum would leave, `(1 - momentum)^t`,
that is said. Less than that means that the momentum was larger before, a schedule; more, that weights moved on after
the statistics, which looks alike and is BN104. Where other layers drift that do not show it, it is the cause only if
taking the initial value out, tried on a copy with a metric, gains {CLOSES} of what recalibrating gains; otherwise it
is a note. Before training on, `convert(model, "debiased", count=0)`: without `count=0` the average would count what
is stored as data, the initial value in it too. A debiased, pooled or windowed average has no initial value and is
not judged.
"""

from __future__ import annotations

from functools import partial

import torch

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.rules.examples import batches, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics, drifts, fits_dropout, ruled_out

REMAINS = 0.01  # of the initial value 0 or 1
LEFT_OVER = 0.8  # of the distance between stored and actual statistics
CLOSES = 0.5  # of what recalibrating gains, by taking the initial value out
MOST = 0.999  # of a share that can be taken out
SAME = 0.35  # of the share, between what is measured and what the momentum would leave

TITLE = "too few steps for the momentum"
SEVERITY = "warning"
FIX = RECALIBRATE + "{then}"
DEBIASED = '  # before training on, batchnorm.convert(model, "debiased", count=0)'


def predicts(e: Evidence) -> Effect:
    """Recalibrating helps, and every layer that drifts shows it, or half of the gain comes from taking 0 and 1 out."""
    whole = by_statistics(e)
    layers = [e.layers[layer] for layer, *_ in look(e)]
    if len(layers) in (0, sum(map(drifts, e.layers.values()))):
        return whole
    if not whole.helps or not e.statistics.measured or e.attempt is None:
        return whole
    statistics = {layer.name: layer.without_initial(_share(layer)) for layer in layers}
    alone = e.attempt("without_initial", statistics)
    if alone is None or alone.gain is None or alone.gain >= CLOSES * (e.statistics.gain or 0.0):
        return whole
    return ruled_out(whole)


def _share(layer: LayerEvidence) -> float:
    share, left = layer.initial_share[0], layer.remaining
    return min(left if left is not None and _expected(layer, share) else share, MOST)


def look(e: Evidence) -> Said:
    """Initial value left, where the layer drifts and that is why."""
    for layer in e.layers.values():
        # Debiased and recalibrated statistics have a small counter too: only what drifts is wrong.
        if not (layer.fades and drifts(layer) and layer.sound and not layer.initial) or layer.momentum == 0:
            continue
        if fits_dropout(layer) or layer.momentum is None:
            continue
        share, left_over = layer.initial_share
        left = layer.remaining
        # With more left than the counter allows, it is not the initial value: old statistics are small, as it is.
        possible = left is not None and (_expected(layer, share) or left > share)
        if share > REMAINS and left_over < LEFT_OVER and possible:
            yield layer.name, _said(layer, share), {"then": DEBIASED if layer.plain else ""}


def _expected(layer: LayerEvidence, share: float) -> bool:
    """Whether the share is what this momentum leaves after so many updates."""
    left = layer.remaining
    return left is not None and left > REMAINS and abs(left - share) <= SAME * max(left, share)


def _said(layer: LayerEvidence, share: float) -> str:
    left = layer.remaining
    if _expected(layer, share):
        return (
            f"{layer.counter} updates at momentum {layer.momentum:g} leave {left:.0%} of the initial value in the "
            "running statistics"
        )
    return (
        f"about {share:.0%} of the initial value is left in the running statistics, as means and variances show; "
        f"{layer.counter} updates at the present momentum {layer.momentum:g} would leave {left:.0%}: it was "
        "larger before"
    )


def _moved(momentum: float, steps: int) -> Example:
    model = network()
    layer = norms(model)[0]
    layer.reset_running_stats()
    layer.momentum = momentum
    with torch.no_grad():
        for batch in (batches() * steps)[:steps]:
            layer.train()(model[0](batch * 1.0))
    return Example(model.eval(), batches())


broken = partial(_moved, 0.01, 16)  # 16 steps at 0.01
healthy = partial(_moved, 0.1, 120)  # 120 steps at 0.1
