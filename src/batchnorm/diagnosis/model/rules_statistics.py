"""Rules on what the layers store, against what they receive."""

from __future__ import annotations

import torch

from batchnorm.diagnosis import alike
from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence

RECALIBRATE = "batchnorm.recalibrate(model, loader)"
# Thresholds; docs/findings.md explains each.
DRIFT = 0.1  # stored std units; below it accuracy hardly moves
LOG_RATIO = 0.2  # root mean square log variance ratio, about 20 %
SURE = 4.0  # times the sampling error
FAR = 100.0  # standard deviations of the mean from 0
GAIN = 1000.0  # weight / sqrt(running_var + eps)


def drifts(layer: LayerEvidence) -> bool:
    """Whether the stored statistics are measurably not those of the data."""
    if not layer.reached or layer.frozen:
        return False
    drift, ratio = layer.drift, layer.var_log_ratio
    if layer.eval_drift is not None and layer.eval_var_log_ratio is not None:
        # Batches that are not alike: what they are normalised by themselves is no measure, see `_measure_in_eval`.
        drift, ratio = min(drift, layer.eval_drift), min(ratio, layer.eval_var_log_ratio)
    return drift > max(DRIFT, SURE * layer.standard_error) or ratio > max(LOG_RATIO, SURE * layer.standard_error)


def initial(e: Evidence) -> Said:
    """Statistics that are those of a new layer; momentum 0 and tracking switched off have rules of their own."""
    for layer in e.layers.values():
        if layer.initial and layer.momentum != 0 and layer.tracks and layer.reached and _matters(layer):
            yield (
                layer.name,
                "running_mean is 0 and running_var is 1 in every channel: the statistics were never updated or loaded",
                f"{RECALIBRATE}; copy, save and load buffers too, not only parameters()",
            )


def _matters(layer: LayerEvidence) -> bool:
    """A new layer in front of data that are standard already is not wrong."""
    return drifts(layer) or layer.frozen


def nonfinite(e: Evidence) -> Said:
    """NaN or infinity in the buffers; the layers in the order of the model."""
    for layer in e.layers.values():
        bad = int((~(torch.isfinite(layer.mean) & torch.isfinite(layer.var))).sum())
        if bad:
            yield (
                layer.name,
                f"{bad} of {layer.mean.numel()} channels hold NaN or infinity; an average never forgets it, "
                "and train mode does not show it",
                f"{RECALIBRATE}; batchnorm.convert(model) skips such batches from now on",
            )


def negative(e: Evidence) -> Said:
    """A variance below zero."""
    for layer in e.layers.values():
        count = int((layer.var < 0).sum())
        if count:
            yield (layer.name, f"running_var is negative in {count} of {layer.var.numel()} channels", RECALIBRATE)


def constant(e: Evidence) -> Said:
    """A variance of exactly zero."""
    for layer in e.layers.values():
        zero = int((layer.var == 0).sum())
        if zero:
            yield (
                layer.name,
                f"running_var is exactly 0 in {zero} of {layer.var.numel()} channels: their input was constant",
                "nothing to repair; such channels can be pruned",
            )


def lag(e: Evidence) -> Said:
    """Drift beyond its sampling error; the layer furthest off first.

    By divergence, since a corrupted layer came first so in every trial of benchmarks/attribution. By its share in
    the output's change it did not where another, a little off, matters more; by drift alone not where only
    variances are off.
    """
    for layer in sorted(e.layers.values(), key=lambda x: -x.divergence):
        if drifts(layer) and not layer.initial and layer.sound:
            ratio = torch.tensor(layer.var_log_ratio).exp().item()
            share = "" if layer.share is None else f"; alone it causes {layer.share:.0%} of the change in the output"
            yield (
                layer.name,
                f"the stored mean is {layer.drift:.2f} standard deviations (+- {layer.standard_error:.2g}) from what "
                f"the layer receives, the variance off by a factor of {ratio:.2f}{share}",
                RECALIBRATE,
            )


def with_dropout(e: Evidence) -> Said:
    """Stored statistics that fit what the layer receives with dropout on, and not without."""
    for layer in e.layers.values():
        rest_drift, rest_ratio = layer.rest_drift, layer.rest_var_log_ratio
        if rest_drift is None or rest_ratio is None or not drifts(layer) or layer.initial or not layer.sound:
            continue
        on, off = rest_drift + rest_ratio, layer.drift + layer.var_log_ratio
        if on < 0.34 * off and off - on > LOG_RATIO:
            factor = torch.tensor(layer.var_log_ratio).exp().item()
            yield (
                layer.name,
                f"the stored statistics are those with dropout switched on; at inference the variance differs by a "
                f"factor of {factor:.2f} ({rest_drift:.2f} standard deviations off with dropout, {layer.drift:.2f} "
                "without)",
                f"{RECALIBRATE} (dropout is off while it measures); or move dropout behind the last batch norm",
            )


def half(e: Evidence) -> Said:
    """Buffers narrower than float32."""
    for layer in e.layers.values():
        if layer.dtype in (torch.float16, torch.bfloat16):
            yield (
                layer.name,
                f"statistics are {str(layer.dtype)[6:]}: small updates round away, and float16 overflows at 65504",
                f"model.float(), then {RECALIBRATE}; batchnorm.convert(model) keeps them float32",
            )


def switched_off(e: Evidence) -> Said:
    """Channels whose weight is almost zero, or whose bias fixes the sign."""
    for layer in e.layers.values():
        if layer.weight is None or layer.bias is None or layer.weight.numel() < 2:
            continue
        size = layer.weight.abs()
        off = alike.switched_off(layer.weight)
        fixed = int(((layer.bias.abs() > 6 * size) & (size > 0)).sum())
        if off or fixed:
            yield (
                layer.name,
                f"{off} of {size.numel()} channels have a weight of almost 0, in {fixed} the bias is more than 6 times "
                "the weight: their output, or its sign, does not depend on the input",
                "nothing to repair; such channels can be pruned",
            )


def far_mean(e: Evidence) -> Said:
    """A mean hundreds of standard deviations from zero: E[x^2] - E[x]^2 cancels, half precision is lost."""
    for layer in e.layers.values():
        distance = (layer.mean.abs() / layer.scale)[layer.var > 0]
        far = distance[torch.isfinite(distance)]
        if far.numel() and float(far.max()) > FAR:
            yield (
                layer.name,
                f"the mean lies up to {float(far.max()):.0f} standard deviations from 0: a variance computed as "
                "E[x^2] - E[x]^2, or half precision, loses it",
                "centre the input; batchnorm.convert(model) computes without cancellation",
            )


def large_gain(e: Evidence) -> Said:
    """Channels that multiply by a thousand: folding and quantising lose there."""
    for layer in e.layers.values():
        if layer.weight is None or layer.initial or not layer.sound:
            continue
        gain = layer.weight.abs() / layer.scale
        live = gain[(layer.var > 0) & (layer.weight != 0)]
        if live.numel() and float(live.max()) > GAIN:
            yield (
                layer.name,
                f"weight / sqrt(running_var + eps) reaches {float(live.max()):.0f}: folding into a convolution, half "
                "precision and quantisation lose accuracy there",
                "verify folded and quantised outputs against the original",
            )
