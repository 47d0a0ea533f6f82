"""The rules of a checkpoint: what its batch norm tensors alone can tell."""

from __future__ import annotations

import torch

from batchnorm.diagnosis.checkpoint.evidence import STATISTICS, CheckpointEvidence, StoredLayer
from batchnorm.diagnosis.findings import Rule, Said, of_each
from batchnorm.diagnosis.rules import bn106_constant, bn126_switched_off

RECALIBRATE = "batchnorm recalibrate --model M:F --data M:F {} --out fixed.pt"
COMPARE = "batchnorm diagnose --model M:F --data M:F {}"
NEAR_OVERFLOW = 0.5  # of float16's largest number, 65504
FAR = 1000.0  # standard deviations, and
UNLIKE = 100.0  # times the median of the layer
FEWER = 0.5  # of the updates of most layers
START = 0.1  # from the initial 0 or 1; an input whose statistics are others has less than about this weight
SOON = 1000  # updates; after more, an average that still holds its start has a momentum nobody uses


def _fix(layer: StoredLayer, command: str = RECALIBRATE) -> str:
    if not layer.weights:
        return "repair the model and export it again: batchnorm.recalibrate(model, loader)"
    return command.replace("{}", layer.weights)


def nonfinite(layer: StoredLayer) -> Said:
    """NaN or infinity in any of the vectors."""
    vectors = {"mean": layer.mean, "var": layer.var, "weight": layer.weight, "bias": layer.bias}
    bad = {k: int((~torch.isfinite(v)).sum()) for k, v in vectors.items() if v is not None}
    if any(bad.values()):
        where = ", ".join(f"{'running_' if k in ('mean', 'var') else ''}{k} in {n}" for k, n in bad.items() if n)
        affected = bad.get("weight") or bad.get("bias")
        yield (
            f"NaN or infinity: {where} of {layer.channels} channels; eval mode gives NaN there",
            "take an earlier checkpoint: the weights are lost" if affected else _fix(layer),
        )


def negative(layer: StoredLayer) -> Said:
    """A variance below zero."""
    count = 0 if layer.var is None else int((layer.var < 0).sum())
    if count:
        yield f"running_var is negative in {count} of {layer.channels} channels", _fix(layer)


def incomplete(layer: StoredLayer) -> Said:
    """One of the two statistics is missing."""
    missing = [key for key in STATISTICS if key not in layer.shapes]
    if missing:
        yield (
            f"{' and '.join(missing)} missing: a load without strict=True keeps the initial value",
            "save model.state_dict(), which has the buffers, not parameters() alone",
        )


def misshaped(layer: StoredLayer) -> Said:
    """Vectors of different length, or not vectors."""
    shapes = {key: shape for key, shape in layer.shapes.items() if key != "num_batches_tracked"}
    counter = layer.shapes.get("num_batches_tracked", ())
    if len(set(shapes.values())) > 1 or any(len(s) != 1 for s in shapes.values()) or counter not in ((), (1,)):
        listed = ", ".join(f"{key} {list(shape)[:4]}" for key, shape in layer.shapes.items())
        yield f"shapes do not fit each other: {listed}", "save the layer's state_dict again"


def initial(layer: StoredLayer) -> Said:
    """Statistics that are those of a new layer."""
    if layer.initial:
        trained = _trained(layer)
        extra = ", though weight and bias are trained" if trained else ""
        yield (
            f"running_mean is 0 and running_var is 1 in every channel{extra}: the statistics were never updated, "
            "or left out when the file was made",
            _fix(layer),
        )


def _trained(layer: StoredLayer) -> bool:
    return (layer.weight is not None and bool((layer.weight != layer.weight[:1]).any())) or (
        layer.bias is not None and bool((layer.bias != 0).any())
    )


def half(layer: StoredLayer) -> Said:
    """Statistics narrower than float32, or about to be too large for float16."""
    narrow = {k for k in STATISTICS if layer.dtypes.get(k) in (torch.float16, torch.bfloat16)}
    largest = max((float(v.abs().max()) for v in (layer.mean, layer.var) if v is not None and v.numel()), default=0)
    if narrow and largest > NEAR_OVERFLOW * 65504 and torch.float16 in layer.dtypes.values():
        yield f"statistics are float16 and reach {largest:.3g}; 65504 is the end", _fix(layer)
    elif narrow:
        kind = str(layer.dtypes[sorted(narrow)[0]])[6:]
        yield (
            f"statistics are {kind}: small updates round away, values are off by up to "
            f"{0.0005 if kind == 'float16' else 0.004:.2%}; batchnorm.convert(model) before .half() keeps float32",
            _fix(layer),
        )


def counters_differ(e: CheckpointEvidence) -> Said:
    """Layers with far fewer or far more updates than most."""
    for key in e.keys:
        counters = {n: v.counter for n, v in e.layers.items() if v.counter is not None and v.key == key}
        usual = sorted(counters.values())[len(counters) // 2] if counters else 0
        for name, count in counters.items() if any(counters.values()) else ():
            if count < FEWER * usual or count > 1.9 * max(usual, 1):
                yield (
                    name,
                    f"num_batches_tracked is {count:g}, in most layers {usual:g}: used several times in a forward, "
                    "frozen for a while, skipped, or loaded from elsewhere",
                    _fix(e.layers[name]),
                )


def averaged_counter(layer: StoredLayer) -> Said:
    """A counter that is not an integer."""
    kind = layer.dtypes.get("num_batches_tracked")
    fraction = layer.counter is not None and not layer.counter.is_integer()
    if kind is not None and (kind.is_floating_point or fraction):
        yield (
            f"num_batches_tracked is {layer.counter:g} of type {str(kind)[6:]}: it was averaged with the weights, "
            "or converted with .half()",
            "copy the counter, and average the rest: batchnorm's `num_batches_tracked` is an int64",
        )


def outlying_mean(layer: StoredLayer) -> Said:
    """A mean far outside its neighbours."""
    if layer.statistics is None:
        return
    mean, var = layer.statistics
    live = torch.isfinite(mean) & (var > 1e-6 * var.median().clamp_min(1e-12))
    distance = mean[live].abs() / var[live].sqrt()
    if distance.numel() > 2 and float(distance.max()) > max(FAR, UNLIKE * float(distance.median())):
        channel = int(torch.nonzero(live).flatten()[distance.argmax()])
        yield (
            f"the mean of channel {channel} lies {float(distance.max()):.0f} standard deviations from 0, the "
            f"median channel's {float(distance.median()):.1f}: an outlying batch, or a broken channel",
            _fix(layer, COMPARE),
        )


def counter_zero(e: CheckpointEvidence) -> Said:
    """Counter 0 beside trained statistics."""
    zero = [n for n, v in e.layers.items() if v.counter == 0 and not v.initial and v.mean is not None]
    for name in zero:
        yield (
            name,
            "num_batches_tracked is 0 beside trained statistics (converted from another framework): with momentum "
            "None, or debiased, the first batch would replace them",
            "nothing to repair for inference; before training on, set the counter to a large number",
        )


def counter_missing(layer: StoredLayer) -> Said:
    """No counter."""
    if "num_batches_tracked" not in layer.shapes:
        yield (
            "num_batches_tracked is missing: the file is older than torch 0.4.1, or it was stripped; a strict "
            "load may refuse it",
            "state[name] = torch.tensor(0) before a strict load",
        )


def barely_moved(layer: StoredLayer) -> Said:
    """A few updates, after which every channel is still where it began; a standardised input looks the same."""
    few = layer.counter is not None and 0 < layer.counter <= SOON
    if not few or layer.initial or layer.mean is None or layer.var is None or not layer.mean.numel():
        return
    mean, var = float(layer.mean.abs().max()), layer.var
    if mean <= START and bool(((var - 1).abs() <= START).all()):
        yield (
            f"updated {layer.counter:g} times, but every channel is still close to the initial 0 and 1 (means up "
            f"to {mean:.2g}, variances {float(var.min()):.3f} to {float(var.max()):.3f}): the layer's input is "
            "standardised, or the average has hardly moved",
            _fix(layer, COMPARE),
        )


def switched_off(layer: StoredLayer) -> Said:
    """Channels whose weight is almost zero."""
    if layer.weight is None or layer.weight.numel() < 2:
        return
    off = bn126_switched_off.switched_off(layer.weight)
    if off:
        yield (
            f"weight is almost 0 in {off} of {layer.channels} channels: their output does not depend on the input",
            bn126_switched_off.FIX,
        )


CHECKPOINT_RULES: tuple[Rule, ...] = (
    Rule("BN202", "not finite in the file", "error", of_each(nonfinite)),
    Rule("BN203", "negative variance in the file", "error", of_each(negative)),
    Rule("BN207", "statistics missing from the file", "error", of_each(incomplete)),
    Rule("BN208", "shapes that do not fit", "error", of_each(misshaped)),
    Rule("BN201", "initial statistics in the file", "error", of_each(initial)),
    Rule("BN212", "averaged counter", "warning", of_each(averaged_counter)),
    Rule("BN205", "half-precision statistics in the file", "warning", of_each(half)),
    Rule("BN209", "counters differ between layers", "warning", counters_differ),
    Rule("BN211", "mean far outside its neighbours", "warning", of_each(outlying_mean)),
    Rule("BN206", "counter 0 beside trained statistics", "note", counter_zero),
    Rule("BN213", "counter missing from the file", "note", of_each(counter_missing)),
    Rule("BN214", "statistics close to their start", "note", of_each(barely_moved)),
    Rule("BN204", "constant channels in the file", "note", of_each(bn106_constant.look_at), bn106_constant.FIX),
    Rule("BN210", "channels switched off in the file", "note", of_each(switched_off)),
)
