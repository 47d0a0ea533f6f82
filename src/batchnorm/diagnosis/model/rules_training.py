"""Rules on how the layers are set up and what a training step does to them."""

from __future__ import annotations

from torch import Tensor

from batchnorm.diagnosis import alike
from batchnorm.diagnosis.findings import Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.diagnosis.model.rules_statistics import RECALIBRATE, drifts
from batchnorm.models.recalibrate import rms

REMAINS = 0.01  # of the initial value 0 or 1
# Without count=0 the average counts what is stored as data, the initial value in it too.
DEBIASED = '; before training on, batchnorm.convert(model, "debiased", count=0)'


def too_few_steps(e: Evidence) -> Said:
    """Initial value left in the statistics, where they drift."""
    for layer in e.layers.values():
        left = layer.remaining
        # Debiased and recalibrated statistics have a small counter too: only what drifts is wrong.
        fair = drifts(layer) and layer.sound and not layer.initial
        if left is not None and left > REMAINS and fair and _nearer_with(layer, left):
            yield (
                layer.name,
                f"{layer.counter} updates at momentum {layer.momentum:g} leave {left:.0%} of the initial value in "
                "the running statistics",
                RECALIBRATE + (DEBIASED if layer.plain else ""),
            )


def _nearer_with(layer: LayerEvidence, left: float) -> bool:
    """Whether what is stored is nearer to a mixture with the initial value than to what the layer receives."""
    values = layer.collected.values
    if values is None:
        return False
    mean, var = values.mean.cpu(), values.var(1).cpu()

    def distance(mean: Tensor, var: Tensor) -> float:
        ratio = ((var + layer.eps) / layer.scale.square()).log()
        return rms((mean - layer.mean) / layer.scale) + rms(ratio)

    return distance((1 - left) * mean, left + (1 - left) * var) < distance(mean, var)


def momentum_outside(e: Evidence) -> Said:
    """A momentum that is no weight of the new batch, where it moves or has moved the statistics away."""
    for layer in e.layers.values():
        m = layer.momentum
        if m is None or 0 <= m <= 1:
            continue
        if not layer.frozen and (layer.training or drifts(layer) or not layer.sound):
            yield (
                layer.name,
                f"momentum is {m:g}, and the weight of the new batch in the average must be in [0, 1]: the old value "
                f"weighs {1 - m:g}, so the statistics swing past the data or away from it, variances below 0",
                f"layer.momentum = 0.1, then {RECALIBRATE}",
            )


def momentum_zero(e: Evidence) -> Said:
    """Momentum 0 where the layer normalises with the batch."""
    for layer in e.layers.values():
        if layer.momentum == 0 and not layer.frozen and (layer.training or drifts(layer)):
            yield (
                layer.name,
                "momentum is 0: in train mode the layer normalises with the batch and moves nothing, so the network "
                "is not trained with the statistics that inference uses",
                f"batchnorm.freeze(model) before training on; {RECALIBRATE} for what is trained already",
            )


def keras_momentum(e: Evidence) -> Said:
    """A momentum that looks like the weight of the old value."""
    return alike.keras_momentum(e, f", then {RECALIBRATE}")


def frozen_but_moving(e: Evidence) -> Said:
    """No gradient for weight and bias, and a training step moves the statistics."""
    for layer in e.layers.values():
        if e.probe and e.probe.moved.get(layer.name) and layer.trains_affine is False:
            yield (
                layer.name,
                "weight and bias do not require gradients, but a training step moves the running statistics",
                "batchnorm.freeze(model), after loading the statistics from before",
            )


def uneven_counters(e: Evidence) -> Said:
    """Layers with far fewer or far more updates than most."""
    judged = {n: layer for n, layer in e.layers.items() if layer.reached and not layer.frozen}
    counters = {n: layer.counter for n, layer in judged.items() if layer.counter is not None}
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


def double_counting(e: Evidence) -> Said:
    """Updates during the backward pass."""
    for name, count in (e.probe.updates_in_backward if e.probe else {}).items():
        if count:
            yield (
                name,
                f"the statistics moved {count} more time{'s' * (count > 1)} in the backward pass: activation "
                "checkpointing runs the forward again",
                "batchnorm.convert(model)",
            )


def not_tracking(e: Evidence) -> Said:
    """track_running_stats flipped on a layer with buffers."""
    for layer in e.layers.values():
        if not layer.tracks:
            yield (
                layer.name,
                "track_running_stats was set to False on a layer that has buffers: train mode uses the batch and "
                "moves nothing, eval mode uses the old buffers",
                f"layer.track_running_stats = True and {RECALIBRATE}; batchnorm.freeze(model) to freeze",
            )


def no_statistics(e: Evidence) -> Said:
    """Layers that were built without running statistics."""
    for name in e.without_statistics:
        yield (
            name,
            "the layer has no running statistics (track_running_stats=False): at inference the result for a sample "
            "depends on the others in its batch",
            "build it with track_running_stats=True, load the weights, then batchnorm.recalibrate(model, loader)",
        )


def sync_on_cpu(e: Evidence) -> Said:
    """SyncBatchNorm where it cannot run."""
    for layer in e.layers.values():
        if layer.kind == "SyncBatchNorm" and e.sync_refused:
            yield (
                layer.name,
                "SyncBatchNorm refuses to train on a CPU once a process group is up",
                "module.__class__ = torch.nn.BatchNorm2d (1d, 3d) for each such module, which has the same state",
            )


def unreached(e: Evidence) -> Said:
    """Layers no forward passed through."""
    for layer in e.layers.values():
        if not layer.reached:
            yield (
                layer.name,
                "no forward reached the layer: nothing is known of what it would receive",
                "pass data that use it, or forward_fn=",
            )
