"""Re-estimate population statistics at fixed weights: exact moments, all or nothing, with an error bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.errors import BatchNormError
from batchnorm.layers import Moments
from batchnorm.models.batches import call, count_samples, progress
from batchnorm.models.find import tracking_layers
from batchnorm.models.modes import is_frozen

ForwardFn = Callable[[nn.Module, Any], Any]


@dataclass
class Collected:
    """What one layer received: all values pooled, how its samples' means spread, and the variance within batches."""

    values: Moments | None = None
    sample_means: Moments | None = None
    within: Tensor | None = None
    calls: int = 0
    fewest_values: float = float("inf")

    def add(self, x: Tensor) -> None:
        """Pool one input `(N, C, *)`."""
        x = x.detach()
        if x.numel() == 0:
            return
        values = Moments.of(x)
        means = x.double().flatten(2).mean(2) if x.dim() > 2 else x.double()
        within = values.count * values.var(1)
        self.merge(Collected(values, Moments.of(means), within, 1, x.numel() / x.shape[1]))

    def merge(self, other: Collected) -> None:
        """Pool what was collected elsewhere."""
        if other.values is None or other.sample_means is None or other.within is None:
            return
        self.values = other.values if self.values is None else self.values.merge(other.values)
        means = self.sample_means
        self.sample_means = other.sample_means if means is None else means.merge(other.sample_means)
        self.within = other.within if self.within is None else self.within + other.within
        self.calls += other.calls
        self.fewest_values = min(self.fewest_values, other.fewest_values)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, per channel: samples are independent, the positions within one are not."""
        if self.sample_means is None:
            return torch.tensor(torch.nan)
        return (self.sample_means.var(1) / self.sample_means.count).sqrt()


@dataclass(frozen=True)
class RecalibratedLayer:
    """One layer's result; shifts and errors are in units of the old `sqrt(running_var + eps)`.

    count is the number of values per channel; mean_shift and standard_error are root mean squares
    over channels, and the tensors per channel stand beside them.
    """

    count: int
    mean_shift: float
    standard_error: float
    var_ratio: float
    mean_shift_per_channel: Tensor = field(repr=False)
    standard_error_per_channel: Tensor = field(repr=False)


@dataclass(frozen=True)
class Recalibration:
    """What `recalibrate` did: samples and batches read, a row a layer, and the way back."""

    samples: int
    batches: int
    layers: dict[str, RecalibratedLayer]
    unreached: tuple[str, ...]
    frozen: tuple[str, ...]
    _before: dict[_BatchNorm, dict[str, Tensor]] = field(repr=False)

    def undo(self) -> None:
        """Put back the statistics from before, to the bit."""
        _restore(self._before)

    def __rich__(self) -> Table:
        title = f"Recalibrated {len(self.layers)} layers on {self.samples} samples"
        table = Table("layer", title=title, title_justify="left")
        for heading in ("values a channel", "mean moved by (std)", "+- (std)", "variance x"):
            table.add_column(heading, justify="right")
        for name, row in self.layers.items():
            cells = (
                f"{row.count}",
                f"{row.mean_shift:.3f}",
                f"{row.standard_error:.3f}",
                f"{row.var_ratio:.3f}",
            )
            table.add_row(name or "(root)", *cells)
        for name in self.unreached:
            table.add_row(name, "never reached: unchanged", "", "", "")
        for name in self.frozen:
            table.add_row(name, "frozen: unchanged", "", "", "")
        return table

    def __str__(self) -> str:
        from batchnorm.models.batches import as_text

        return as_text(self)


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward_fn: ForwardFn | None = None,
    variance: str = "total",
    max_batches: int | None = None,
    show_progress: bool = False,
) -> Recalibration:
    """Re-estimate the running statistics of every batch norm layer from data, weights unchanged.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
        >>> data = torch.randn(200, 3) * 2 + 5
        >>> result = batchnorm.recalibrate(model, data.split(64))
        >>> result.samples, torch.allclose(model[0].running_mean, data.mean(0))
        (200, True)

    Batch norm layers normalise with their batches while everything else stays in eval (dropout is
    off). Moments are pooled in float64 with counts, so ragged batches weigh what they should;
    layers used several times pool all uses; frozen layers and layers no forward reached are left
    alone. If anything raises, or the process is interrupted, the model is exactly as it was.

    Args:
        model: changed in its batch norm buffers only.
        loader: batches; a tensor is passed as it is, of a tuple or list the first element, a dict
            as keyword arguments.
        forward_fn: `forward_fn(model, batch)` for anything else.
        variance: "total" (of all values, the law of total variance) or "within" (the mean of the
            batches' variances, weighted by count, as torch's EMA converges to).
        max_batches: stop after this many.
        show_progress: a progress bar on the terminal.

    Raises:
        BatchNormError: no batch norm layer, an empty loader, non-finite data, a batch with one
            value per channel.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), PreciseBN.
    """
    if variance not in ("total", "within"):
        raise BatchNormError(f"variance must be 'total' or 'within'; it was {variance!r}")
    if max_batches is not None and max_batches < 1:
        raise BatchNormError(f"max_batches must be 1 or more; it was {max_batches}")
    layers = tracking_layers(model)
    frozen = tuple(name for name, layer in layers.items() if is_frozen(layer))
    active = {name: layer for name, layer in layers.items() if name not in frozen}
    if not active:
        raise BatchNormError("model must contain a batch norm layer that is not frozen; all are")
    samples = batches = 0
    with collecting(model, active) as collected:
        for batch in progress(loader, max_batches, show_progress, "recalibrating"):
            call(model, batch, forward_fn)
            samples += count_samples(batch)
            batches += 1
    if batches == 0:
        raise BatchNormError("loader must yield at least one batch; it was empty")
    new = {name: _estimate(name, c, variance) for name, c in collected.items() if c.values}
    rows = {name: _row(active[name], collected[name], *new[name]) for name in new}
    before = snapshot(active.values())
    try:
        for name, (mean, var) in new.items():
            _write(active[name], mean, var, batches, collected[name])
    except BaseException:
        _restore(before)
        raise
    unreached = tuple(name for name in active if name not in new)
    return Recalibration(samples, batches, rows, unreached, frozen, before)


@contextmanager
def collecting(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[dict[str, Collected]]:
    """Pool what each layer receives; layers normalise with the batch, all else is in eval, nothing moves."""
    flags = {module: module.training for module in model.modules()}
    collected = {name: Collected() for name in layers}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            collected[name].add(args[0])

        return hook

    with ExitStack() as stack, torch.no_grad():
        stack.callback(lambda: [setattr(m, "training", flag) for m, flag in flags.items()])
        for module in flags:
            module.training = False
        for name, layer in layers.items():
            # A layer that does not track normalises with its batch, whatever its coupling, and moves nothing.
            stack.callback(setattr, layer, "track_running_stats", layer.track_running_stats)
            layer.training, layer.track_running_stats = True, False
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        yield collected


def snapshot(layers: Iterable[_BatchNorm]) -> dict[_BatchNorm, dict[str, Tensor]]:
    """Copies of the layers' statistics."""
    return {layer: {name: b.clone() for name, b in layer._buffers.items() if b is not None} for layer in layers}


def _restore(before: dict[_BatchNorm, dict[str, Tensor]]) -> None:
    with torch.no_grad():
        for layer, buffers in before.items():
            for name, value in buffers.items():
                layer._buffers[name].copy_(value)  # pyright: ignore[reportOptionalMemberAccess]


def _estimate(name: str, collected: Collected, variance: str) -> tuple[Tensor, Tensor]:
    values = collected.values
    if values is None or not bool(torch.isfinite(values.mean).all() and torch.isfinite(values.m2).all()):
        raise BatchNormError(f"loader must give finite activations; NaN or infinity reached layer {name!r}")
    if variance == "total" or collected.within is None:
        return values.mean, values.var(1)
    return values.mean, collected.within / values.count


def _row(layer: _BatchNorm, collected: Collected, mean: Tensor, var: Tensor) -> RecalibratedLayer:
    old_mean, old_var = layer.running_mean.double(), layer.running_var.double()  # pyright: ignore
    scale = (old_var.clamp_min(0) + layer.eps).sqrt()
    shift, error = (mean - old_mean) / scale, collected.standard_error / scale
    ratio = ((var + layer.eps) / (old_var.clamp_min(0) + layer.eps)).log().mean().exp()
    count = int(collected.values.count[0])  # pyright: ignore[reportOptionalMemberAccess]
    return RecalibratedLayer(count, rms(shift), rms(error), float(ratio), shift, error)


def rms(values: Tensor) -> float:
    """Root mean square over channels."""
    return float(values.square().mean().sqrt())


@torch.no_grad()
def _write(layer: _BatchNorm, mean: Tensor, var: Tensor, batches: int, collected: Collected) -> None:
    layer.running_mean.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]
    layer.running_var.copy_(var)  # pyright: ignore[reportOptionalMemberAccess]
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)
    count = layer._buffers.get("pooled_count")
    if count is not None and collected.values is not None:
        count.fill_(collected.values.count[0])
