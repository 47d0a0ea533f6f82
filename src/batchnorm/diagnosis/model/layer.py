"""What is known of one layer: what it stores, what it received, and how far the two are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.experiments.inputs import Inputs
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.models.modes import is_frozen
from batchnorm.models.momentum import fades_from_start, is_plain, next_momentum
from batchnorm.models.recalibration.recalibrating import rms


@dataclass
class LayerEvidence:
    """One layer: what is stored, what it received, and how it is set up.

    drift is the distance between stored and actual mean, root mean square over channels, in units
    of sqrt(running_var + eps); standard_error its sampling error in the same units; var_log_ratio
    the root mean square of log(actual / stored variance), var_log_error its sampling error;
    divergence the mean over channels of the Kullback-Leibler divergence of the stored Gaussian from the
    actual one, in nats. damage is what the layer's stored statistics alone do to the output, share its
    part of all layers'.

    collected is what the layer receives where batches normalise (frozen layers: what is stored),
    in_eval what it receives with the stored statistics before it, with_rest_in_train with dropout on,
    without_padding the same without padded positions, and by_call what each of several calls in a
    forward receives. fades says whether the initial 0 and 1 keep the weight (1 - momentum)^t, plain whether
    the layer is torch's or does what torch's does.
    """

    name: str
    eps: float
    momentum: float | None
    training: bool
    tracks: bool
    frozen: bool
    trains_affine: bool | None
    mean: Tensor
    var: Tensor
    dtype: torch.dtype
    counter: int | None
    kind: str = "BatchNorm"
    fades: bool = True
    plain: bool = True
    weight: Tensor | None = None
    bias: Tensor | None = None
    modes: Mapping[str, int] = field(default_factory=dict)
    collected: Received = field(default_factory=Received)
    in_eval: Received = field(default_factory=Received)
    with_rest_in_train: Received = field(default_factory=Received)
    without_padding: Received = field(default_factory=Received)
    by_call: list[Received] = field(default_factory=list)
    inputs: Inputs = field(default_factory=Inputs)
    drift: float = 0.0
    standard_error: float = 0.0
    var_log_ratio: float = 0.0
    var_log_error: float = 0.0
    divergence: float = 0.0
    eval_drift: float | None = None
    eval_var_log_ratio: float | None = None
    rest_drift: float | None = None
    rest_var_log_ratio: float | None = None
    rest_error: float = 0.0
    damage: float | None = None
    share: float | None = None

    @property
    def reached(self) -> bool:
        """Whether a forward passed through the layer."""
        return self.collected.values is not None or self.in_eval.values is not None

    @property
    def sound(self) -> bool:
        """Whether all stored statistics are finite."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.var).all())

    @property
    def initial(self) -> bool:
        """Whether the statistics are those of a new layer."""
        return bool((self.mean == 0).all() and (self.var == 1).all())

    @property
    def scale(self) -> Tensor:
        """sqrt(running_var + eps) per channel, negative variances counted as 0."""
        return (self.var.clamp_min(0) + self.eps).sqrt()

    @property
    def spread(self) -> float:
        """How much the batches' means vary, over what shuffled ones would give; 1 where it may be chance."""
        means = self.collected.sample_means
        if means is None or self.frozen:
            return 1.0
        spread, batches = self.inputs.spread(means.var(1).cpu())
        # The mean of many channels' ratios; each has a relative error of sqrt(2 / batches), and they are correlated.
        return spread if spread > 1 + 4.0 * (2 / max(batches - 1, 1)) ** 0.5 else 1.0

    @property
    def mean_off(self) -> tuple[float, float]:
        """How far the stored mean lies from the actual one, and how far a batch's mean does: actual deviations, rms."""
        values = self.collected.values
        batches = [means[0] for means in self.inputs.means if means]
        if values is None or len(batches) < 3:
            return math.inf, 0.0
        mean, scale = values.mean.cpu(), (values.var(1).cpu() + self.eps).sqrt()
        return rms((self.mean - mean) / scale), rms(torch.stack(batches).std(0) / scale)

    def without_initial(self, share: float) -> tuple[Tensor, Tensor]:
        """The stored statistics with this share of the initial 0 and 1 taken out."""
        return self.mean / (1 - share), ((self.var - share) / (1 - share)).clamp_min(0)

    @property
    def factor(self) -> float:
        """Between the stored and the actual variance."""
        return math.exp(min(self.var_log_ratio, 50.0)) if self.var_log_ratio == self.var_log_ratio else math.nan

    @property
    def remaining(self) -> float | None:
        """How much of the initial 0 or 1 would be left at this momentum, (1 - momentum)^t."""
        if not self.fades or self.momentum is None or not self.counter or not 0 < self.momentum <= 1:
            return None
        return (1 - self.momentum) ** self.counter

    @property
    def initial_share(self) -> tuple[float, float]:
        """The share of 0 and 1 that explains best how stored and actual statistics differ, and what it leaves.

        Stored = (1 - s) actual + s initial, by least squares over the means and variances of all channels in
        standard deviations. What is left is the distance of what is stored from that mixture, over its distance
        from what is received, means in standard deviations and log variances together.
        """
        values = self.collected.values
        if values is None or not self.sound:
            return 0.0, 1.0
        mean, var, scale = values.mean.cpu(), values.var(1).cpu(), self.scale
        way = torch.cat([mean / scale, (var - 1) / (math.sqrt(2) * scale.square())])
        gone = torch.cat([(mean - self.mean) / scale, (var - self.var) / (math.sqrt(2) * scale.square())])
        power = float(way.square().sum())
        if not 0 < power < math.inf:
            return 0.0, 1.0
        share = min(max(float((way * gone).sum()) / power, 0.0), 1.0)

        def distance(mean: Tensor, var: Tensor) -> float:
            return rms((mean - self.mean) / scale) + rms(((var + self.eps) / scale.square()).log())

        whole = distance(mean, var)
        mixed = distance((1 - share) * mean, share + (1 - share) * var)
        return share, mixed / whole if whole > 0 else 1.0


def trains_affine(module: _BatchNorm) -> bool | None:
    """Whether weight or bias require gradients; None for a layer without."""
    affine = [p.requires_grad for p in (module.weight, module.bias) if p is not None]
    return any(affine) if affine else None


def stored(name: str, module: _BatchNorm) -> LayerEvidence:
    """What a layer holds, copied to float64 on the CPU."""
    counter = module.num_batches_tracked
    mean, var = module.running_mean, module.running_var
    empty = torch.zeros(0, dtype=torch.float64)
    return LayerEvidence(
        name=name,
        kind=type(module).__name__,
        fades=fades_from_start(module),
        plain=is_plain(module),
        eps=module.eps,
        momentum=next_momentum(module),
        training=module.training,
        tracks=module.track_running_stats,
        frozen=is_frozen(module),
        trains_affine=trains_affine(module),
        mean=empty if mean is None else mean.detach().to("cpu", torch.float64, copy=True),
        var=empty if var is None else var.detach().to("cpu", torch.float64, copy=True),
        dtype=torch.float32 if var is None else var.dtype,
        counter=None if counter is None else int(counter),
        weight=None if module.weight is None else module.weight.detach().to("cpu", torch.float64, copy=True),
        bias=None if module.bias is None else module.bias.detach().to("cpu", torch.float64, copy=True),
    )


def compare(layer: LayerEvidence) -> None:
    """Fill in the distances between what is stored and what was received."""
    values = layer.collected.values
    if values is None:
        return
    shift = (values.mean.cpu() - layer.mean) / layer.scale
    ratio = (values.var(1).cpu() + layer.eps) / layer.scale.square()
    layer.drift = rms(shift)
    layer.standard_error = rms(layer.collected.standard_error.cpu() / layer.scale)
    layer.var_log_ratio = rms(ratio.log())
    layer.var_log_error = rms(layer.collected.variance_error.cpu() / (values.var(0).cpu() + layer.eps))
    layer.divergence = float((0.5 * (ratio + shift.square() - 1 - ratio.log())).mean())
    if layer.with_rest_in_train.values is not None:
        rest = layer.with_rest_in_train
        layer.rest_drift, layer.rest_var_log_ratio = apart(layer, rest)
        errors = rest.standard_error.cpu() / layer.scale, rest.variance_error.cpu() / (values.var(0).cpu() + layer.eps)
        layer.rest_error = sum(error for error in map(rms, errors) if error == error)
    if layer.in_eval.values is not None:
        layer.eval_drift, layer.eval_var_log_ratio = apart(layer, layer.in_eval)


def apart(layer: LayerEvidence, received: Received) -> tuple[float, float]:
    """The distances of mean and variance between what is stored and what was received."""
    mean, var = received.values.mean.cpu(), received.values.var(1).cpu()  # pyright: ignore[reportOptionalMemberAccess]
    return rms((mean - layer.mean) / layer.scale), rms(((var + layer.eps) / layer.scale.square()).log())
