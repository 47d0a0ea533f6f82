"""The rules: evidence in, findings out. Each is a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from batchnorm.diagnose.evidence import Evidence, LayerEvidence
from batchnorm.diagnose.findings import Finding, Severity

RECALIBRATE = "batchnorm.recalibrate(model, loader)"
# Thresholds, in one place; docs/findings.md explains each.
DRIFT = 0.1  # stored std units; below it accuracy hardly moves
LOG_RATIO = 0.2  # root mean square log variance ratio, about 20 %
SURE = 4.0  # times the sampling error
FEW_VALUES = 16  # below, the batch variance is off by 35 % or more, sqrt(2 / n)
REMAINS = 0.01  # of the initial value 0 or 1
PADDING = 0.05


class Rule(NamedTuple):
    """A code, what it is called, how bad it is, and what it looks for."""

    code: str
    title: str
    severity: Severity
    look: Callable[[Evidence], Iterator[tuple[str, str, str]]]


def _initial(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if is_initial(layer):
            yield (
                layer.name,
                "running_mean is 0 and running_var is 1 in every channel: the statistics were never updated or loaded",
                RECALIBRATE,
            )


def is_initial(layer: LayerEvidence) -> bool:
    """Whether the statistics are those of a new layer."""
    return bool((layer.mean == 0).all() and (layer.var == 1).all())


def _nonfinite(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        bad = int((~(torch.isfinite(layer.mean) & torch.isfinite(layer.var))).sum())
        if bad:
            yield (
                layer.name,
                f"{bad} of {layer.mean.numel()} channels hold NaN or infinity; an average never forgets it, "
                "and train mode does not show it",
                f"{RECALIBRATE}; batchnorm.convert(model) skips such batches from now on",
            )


def _not_positive(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        negative = int((layer.var < 0).sum())
        if negative:
            yield (
                layer.name,
                f"running_var is negative in {negative} of {layer.var.numel()} channels",
                RECALIBRATE,
            )


def _zero_var(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        zero = int((layer.var == 0).sum())
        if zero:
            yield (
                layer.name,
                f"running_var is exactly 0 in {zero} of {layer.var.numel()} channels: their input was constant",
                "nothing to repair; such channels can be pruned",
            )


def _drifts(layer: LayerEvidence) -> bool:
    if layer.collected.values is None or layer.frozen:
        return False
    return layer.drift > max(DRIFT, SURE * layer.standard_error) or layer.var_log_ratio > max(
        LOG_RATIO, SURE * layer.standard_error
    )


def _lag(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if _drifts(layer) and not is_initial(layer) and bool(torch.isfinite(layer.mean + layer.var).all()):
            ratio = torch.tensor(layer.var_log_ratio).exp().item()
            yield (
                layer.name,
                f"the stored mean is {layer.drift:.2f} standard deviations (+- {layer.standard_error:.2f}) from what "
                f"the layer receives, the variance off by a factor of {ratio:.2f}",
                RECALIBRATE,
            )


def remaining(layer: LayerEvidence) -> float | None:
    """How much of the initial 0 or 1 is still in the running statistics, (1 - momentum)^t."""
    if layer.momentum is None or not layer.counter or not 0 < layer.momentum <= 1:
        return None
    return (1 - layer.momentum) ** layer.counter


def _too_few_steps(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        left = remaining(layer)
        # Debiased and recalibrated statistics have a small counter too: only what drifts is wrong.
        if left is not None and left > REMAINS and _drifts(layer):
            yield (
                layer.name,
                f"{layer.counter} updates at momentum {layer.momentum:g} leave {left:.0%} of the initial value in "
                "the running statistics",
                f'{RECALIBRATE}, or train with batchnorm.convert(model, "debiased")',
            )


def _momentum_zero(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if layer.momentum == 0 and layer.training and not layer.frozen:
            yield (
                layer.name,
                "momentum is 0 in train mode: the layer normalises with the batch, so the network is not trained "
                "with the statistics that inference uses",
                "batchnorm.freeze(model)",
            )


def _keras_momentum(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if layer.momentum is not None and 0.5 <= layer.momentum < 1:
            yield (
                layer.name,
                f"momentum is {layer.momentum:g}, the weight of the NEW batch in torch; it looks like a Keras or Flax "
                "value, the weight of the old one",
                f"layer.momentum = {1 - layer.momentum:g}",
            )


def _frozen_but_moving(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if e.probe and e.probe.moved.get(layer.name) and layer.trains_affine is False:
            yield (
                layer.name,
                "weight and bias do not require gradients, but a training step moves the running statistics",
                "batchnorm.freeze(model)",
            )


def _half(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if layer.dtype in (torch.float16, torch.bfloat16):
            yield (
                layer.name,
                f"statistics are {str(layer.dtype)[6:]}: small updates round away, and float16 overflows at 65504",
                "batchnorm.convert(model) keeps them float32",
            )


def _few_values(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        n = layer.collected.fewest_values
        if n < FEW_VALUES and not layer.frozen:
            yield (
                layer.name,
                f"a batch has {n:.0f} values per channel: its variance is uncertain by "
                f"{(2 / max(n - 1, 1)) ** 0.5:.0%}",
                "use larger batches, or batchnorm.freeze(model)",
            )


def _uneven_counters(e: Evidence) -> Iterator[tuple[str, str, str]]:
    counters = {n: layer.counter for n, layer in e.layers.items() if layer.counter is not None and not layer.frozen}
    if counters and max(counters.values()) > 0:
        usual = sorted(counters.values())[len(counters) // 2]
        for name, count in counters.items():
            if count < 0.5 * usual or count > 1.9 * max(usual, 1):
                yield (
                    name,
                    f"num_batches_tracked is {count}, in most layers {usual}: the layer is used several times in a "
                    "forward, was skipped, or was loaded from elsewhere",
                    "batchnorm.recalibrate(model, loader) pools all uses of a shared layer",
                )


def _padding(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if layer.padding > PADDING:
            yield (
                layer.name,
                f"{layer.padding:.0%} of the positions are runs of exact zeros at the end of samples of different "
                "length: padding is counted as data",
                "take the padding out before the layer: Moments.of(x, mask=mask) shows the statistics without it",
            )


def _double_counting(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for name, count in (e.probe.updates_in_backward if e.probe else {}).items():
        if count:
            yield (
                name,
                f"the statistics moved {count} more time{'s' * (count > 1)} in the backward pass: activation "
                "checkpointing runs the forward again",
                "batchnorm.convert(model)",
            )


def _not_tracking(e: Evidence) -> Iterator[tuple[str, str, str]]:
    for layer in e.layers.values():
        if not layer.tracks:
            yield (
                layer.name,
                "track_running_stats was set to False on a layer that has buffers: train mode uses the batch and "
                "moves nothing, eval mode uses the old buffers",
                "layer.track_running_stats = True, and batchnorm.freeze(model) to freeze",
            )


RULES: tuple[Rule, ...] = (
    Rule("BN101", "statistics at their initial value", "error", _initial),
    Rule("BN102", "statistics not finite", "error", _nonfinite),
    Rule("BN103", "variance negative", "error", _not_positive),
    Rule("BN104", "statistics lag behind the data", "warning", _lag),
    Rule("BN105", "half-precision statistics", "warning", _half),
    Rule("BN106", "constant channels", "note", _zero_var),
    Rule("BN201", "momentum 0 in train mode", "warning", _momentum_zero),
    Rule("BN202", "too few steps for the momentum", "warning", _too_few_steps),
    Rule("BN203", "frozen parameters, moving statistics", "warning", _frozen_but_moving),
    Rule("BN204", "uneven counters", "warning", _uneven_counters),
    Rule("BN205", "double counting", "warning", _double_counting),
    Rule("BN206", "momentum of another framework", "warning", _keras_momentum),
    Rule("BN207", "tracking switched off after construction", "warning", _not_tracking),
    Rule("BN301", "too few values per channel", "warning", _few_values),
    Rule("BN302", "padding counted as data", "warning", _padding),
)


def apply_rules(evidence: Evidence) -> list[Finding]:
    """All findings, the most severe first, in the order of the table."""
    found = [
        Finding(rule.code, rule.severity, layer, message, fix)
        for rule in RULES
        for layer, message, fix in rule.look(evidence)
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))
