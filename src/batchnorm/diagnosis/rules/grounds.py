"""What rules of a live model share: when statistics are off, and the experiments that their findings rest on."""

from __future__ import annotations

from dataclasses import replace

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.model.evidence import RECALIBRATE as RECALIBRATE
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence

DRIFT = 0.1  # stored standard deviations
LOG_RATIO = 0.2  # root mean square log variance ratio, about 20 %
SURE = 4.0  # times the sampling error
CLOSER = 0.34  # of the distance without dropout, with dropout on
TWO_GROUPS = 0.93  # of the spread of batch means; two halves of a normal distribution explain 0.64
UNLIKE = 3.0  # of the batches' means, in units of what shuffled batches would give
ROUNDING = 0.01  # of the mean square: no cancellation leaves a variance further below zero
MISPLACED = 0.35  # of the channels


def drifts(layer: LayerEvidence) -> bool:
    """Whether the stored statistics are measurably not those of the data, each against its own error.

    A layer whose stored statistics change nothing in the output (it does not read them) is not judged.
    """
    return layer.reached and not layer.frozen and layer.damage != 0 and unlike(layer)


def unlike(layer: LayerEvidence) -> bool:
    """Whether what is stored is measurably not what is received."""
    drift, ratio = layer.drift, layer.var_log_ratio
    if layer.spread > UNLIKE and layer.eval_drift is not None and layer.eval_var_log_ratio is not None:
        # Batches that are not alike: what they are normalised to by themselves is no measure.
        drift, ratio = min(drift, layer.eval_drift), min(ratio, layer.eval_var_log_ratio)
    return above(drift, DRIFT, layer.standard_error) or above(ratio, LOG_RATIO, layer.var_log_error)


def misplaced(layer: LayerEvidence) -> str:
    """Why running_var holds something else than variances, "" where nothing shows that it does."""
    values = layer.collected.values
    if values is None or not len(layer.var) or layer.initial:
        return ""
    for name, other in (("running_mean", layer.mean), ("weight", layer.weight), ("bias", layer.bias)):
        if other is not None and other.shape == layer.var.shape and len(other) > 1 and bool((other == layer.var).all()):
            return f"running_var holds the values of {name}"
    below = layer.var < -ROUNDING * (values.mean.square() + values.var(1)).cpu()
    if float(below.double().mean()) < MISPLACED:
        return ""
    return f"running_var is negative in {int((layer.var < 0).sum())} of {len(below)} channels, which no rounding does"


def above(value: float, limit: float, error: float) -> bool:
    """Whether a distance is neither negligible nor chance; an error that is not known excuses nothing."""
    return value > max(limit, SURE * error if error == error else 0.0)


def by_statistics(e: Evidence) -> Effect:
    """What recalibrating does: on the evaluation data where they say something, since the model is used on those.

    Where they differ from the loader's, a gain there is no sign that the loader's statistics are right; a loss is
    still a loss.
    """
    held_out = e.eval_exact
    says = held_out.harms or (held_out.helps and not e.difference.words)
    return held_out if held_out.measured and says and not e.statistics.harms else e.statistics


def ruled_out(effect: Effect) -> Effect:
    """The same for a cause whose prediction failed: what was measured is not its doing."""
    return replace(effect, gain=None if effect.gain is None else 0.0, moved=None if effect.moved is None else 0.0)


def batch_is_better(e: Evidence) -> Effect:
    """What the batch's statistics do instead of exact ones."""
    return e.by_batch


def batch_is_worse(e: Evidence) -> Effect:
    """What exact statistics do instead of the batch's."""
    gain = e.by_batch.gain
    return replace(
        e.by_batch,
        what="exact statistics instead of the batch's",
        before=e.by_batch.after,
        after=e.by_batch.before,
        gain=None if gain is None else -gain,
    )


def first_unlike(e: Evidence) -> tuple[LayerEvidence, float] | None:
    """The layer whose batches' means vary most, where that is more than chance."""
    spreads = [(layer, layer.spread) for layer in e.layers.values() if layer.reached]
    worst = max(spreads, key=lambda pair: pair[1], default=None)
    return worst if worst is not None and worst[1] > UNLIKE else None


def fits_dropout(layer: LayerEvidence) -> bool:
    """Whether the stored statistics are nearer to what the layer receives with dropout on, and that explains them."""
    drift, ratio = layer.rest_drift, layer.rest_var_log_ratio
    if drift is None or ratio is None or not drifts(layer) or layer.initial or not layer.sound:
        return False
    on, off = drift + ratio, layer.drift + layer.var_log_ratio
    return on - layer.rest_error < CLOSER * off and off - on > LOG_RATIO
