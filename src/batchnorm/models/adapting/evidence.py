"""What unlabelled data says about statistics: how far they are off, how samples differ, and in what order they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm import kernels
from batchnorm.errors import BatchNormError
from batchnorm.models.batches import call
from batchnorm.models.receiving import on_input, received

ForwardFn = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Samples:
    """The mean and variance of each sample's own values at a layer, `(samples, C)` in float64."""

    mean: Tensor
    var: Tensor

    def pooled(self) -> tuple[Tensor, Tensor]:
        """The mean and the biased variance of all values; samples weigh alike."""
        centre = self.mean.mean(0)
        return centre, (self.var + (self.mean - centre).square()).mean(0)

    def finite(self) -> bool:
        """Whether all are numbers."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.var).all())

    @cached_property
    def correlations(self) -> Tensor:
        """The correlation of samples k places apart, `(samples,)`, averaged over channels; 1 at k = 0."""
        z = self.mean - self.mean.mean(0)
        count = len(z)
        # Padded with zeros, so that the circular correlation of the transform is the plain one.
        power = torch.fft.rfft(z / self._size, n=2 * count, dim=0).abs().square().mean(1)
        raw = torch.fft.irfft(power, n=2 * count)[:count] / torch.arange(count, 0, -1, device=z.device)
        return raw / raw[0].clamp_min(1e-300)

    @property
    def _size(self) -> Tensor:
        size = self.mean.std(0, correction=0)
        return torch.where(size > 0, size, 1.0)

    @cached_property
    def effective_count(self) -> float:
        """How many independent samples tell as much about the mean: count / (1 + 2 sum of correlations).

        The sum ends at the first correlation that is none.
        """
        tail = self.correlations[1 : max(len(self.mean) // 2, 2)]
        none = (tail <= _NO_CORRELATION).nonzero()
        until = int(none[0]) if len(none) else len(tail)
        return len(self.mean) / (1 + 2 * float(tail[:until].sum()))


# Chance gives as much to independent samples of a few hundred.
_NO_CORRELATION = 0.02


@dataclass(frozen=True)
class Shift:
    """How far a layer's statistics are from the data, against how far one sample is from all of them.

    shift and spread are squared errors in units of the stored standard deviation, averaged over
    channels, of the mean and of the standard deviation together: those of the stored statistics
    (less what so few samples would show by chance), and those of statistics taken from one sample.
    """

    shift: float
    spread: float

    @property
    def prior(self) -> float:
        """How many samples the stored statistics are worth here: n samples err by spread / n, they by shift."""
        return self.spread / self.shift if self.shift > 0 else float("inf")


def shift_of(samples: Samples, mean: Tensor, var: Tensor, eps: float) -> Shift:
    """Compare the stored mean and variance with the data's."""
    here, spread_here = samples.pooled()
    stored = var + eps
    off_mean = (here - mean).square() / stored
    off_std = (((spread_here + eps) / stored).sqrt() - 1).square()
    about = samples.var + (samples.mean - here).square()
    noise_mean = samples.mean.var(0) / stored
    # The error of a standard deviation is that of its variance over twice itself.
    noise_std = about.var(0) / (4 * stored * (spread_here + eps))
    spread = float((noise_mean + noise_std).mean())
    return Shift(max(float((off_mean + off_std).mean()) - spread / samples.effective_count, 0.0), spread)


@dataclass(frozen=True)
class Order:
    """The correlation of each sample with the next, and the probability of as much by chance."""

    correlation: float
    p_value: float


def order_of(layers: Iterable[Samples]) -> Order:
    """Whether neighbours in the stream are alike, at the layer that shows it best.

    Were the order of no account, the correlation at lag 1 would have the mean -1 / (count - 1) and the
    variance 1 / (count d), d = tr(R)^2 / tr(R^2) of the channels' correlation matrix R.
    """
    found: list[Order] = []
    for samples in layers:
        z = (samples.mean - samples.mean.mean(0)) / samples._size
        count, scatter = len(z), z.T @ z
        dimensions = scatter.trace().square() / scatter.square().sum().clamp_min(1e-300)
        lag = float(samples.correlations[1])
        score = (lag + 1 / (count - 1)) * math.sqrt(count * float(dimensions))
        found.append(Order(lag, 0.5 * math.erfc(score / math.sqrt(2))))
    best = min(found, key=lambda order: order.p_value)
    return Order(best.correlation, min(best.p_value * len(found), 1.0))


def read(
    model: nn.Module, layers: dict[str, nn.Module], batches: list[Any], forward_fn: ForwardFn | None
) -> tuple[dict[str, Samples], list[Any]]:
    """The samples at each layer that one pass reaches, in the order of execution, and the model's outputs.

    The caller holds the model.
    """
    parts: dict[str, list[Samples]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, _ = received(module, args, kwargs)
            if x.numel():
                parts.setdefault(name, []).append(_moments(x))

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(on_input(layer, watch(name)).remove)
        found = outputs_of(model, batches, forward_fn)
    samples = {n: Samples(torch.cat([p.mean for p in ps]), torch.cat([p.var for p in ps])) for n, ps in parts.items()}
    for name, at_layer in samples.items():
        if not at_layer.finite():
            raise BatchNormError(f"data must give finite activations; NaN or infinity reached layer {name!r}")
    return samples, found


def outputs_of(model: nn.Module, batches: list[Any], forward_fn: ForwardFn | None) -> list[Any]:
    """What the model gives for each batch."""
    return [call(model, batch, forward_fn, number=k, loader="data") for k, batch in enumerate(batches)]


def _moments(x: Tensor) -> Samples:
    x = x.detach()
    found = kernels.select(x).reduce(x, None, len(x), True)
    return Samples(found.mean, found.m2 / found.count)
