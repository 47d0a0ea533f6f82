"""What is measured on a live model: everything the rules rest on, and nothing in the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnose.probe import Probe, probe_training_step
from batchnorm.errors import BatchNormError
from batchnorm.models.batches import call, count_samples
from batchnorm.models.find import tracking_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.recalibrate import Collected, collecting, rms


@dataclass
class LayerEvidence:
    """One layer: what is stored, what it received, and how it is set up.

    drift is the distance between stored and actual mean, root mean square over channels, in units
    of sqrt(running_var + eps); standard_error its sampling error in the same units; var_log_ratio
    the root mean square of log(actual / stored variance).
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
    collected: Collected = field(default_factory=Collected)
    padding: float = 0.0
    finite_input: bool = True
    drift: float = 0.0
    standard_error: float = 0.0
    var_log_ratio: float = 0.0


@dataclass
class Evidence:
    """The whole model: its layers, the outputs in both modes, and a training step that was rolled back."""

    layers: dict[str, LayerEvidence]
    samples: int
    batches: int
    output_gap: float | None
    probe: Probe | None


def gather(model: nn.Module, loader: Iterable[Any], forward_fn: Callable[..., Any] | None) -> Evidence:
    """Measure a model on a loader; raises `BatchNormError` for a model or loader that has nothing to measure."""
    modules = tracking_layers(model)
    layers = {name: _stored(name, module) for name, module in modules.items()}
    samples = batches = 0
    gaps: list[tuple[float, float]] = []
    first: Any = None
    for batch in loader:
        first = batch if batches == 0 else first
        active = {name: module for name, module in modules.items() if not is_frozen(module)}
        with collecting(model, active) as got, _inputs(modules, layers):
            trained = call(model, batch, forward_fn)
        for name, part in got.items():
            layers[name].collected.merge(part)
        evaluated = _in_eval(model, modules, layers, batch, forward_fn)
        gap = _gap(trained, evaluated)
        if gap is not None:
            gaps.append(gap)
        samples += count_samples(batch)
        batches += 1
    if batches == 0:
        raise BatchNormError("loader must yield at least one batch; it was empty")
    for layer in layers.values():
        if not layer.finite_input:
            raise BatchNormError(f"loader must give finite activations; NaN or infinity reached layer {layer.name!r}")
        _compare(layer)
    probe = probe_training_step(model, modules, first, forward_fn)
    power = sum(p for _, p in gaps)
    gap = (sum(g for g, _ in gaps) / power) ** 0.5 if power > 0 else None
    return Evidence(layers, samples, batches, gap, probe)


def _stored(name: str, module: _BatchNorm) -> LayerEvidence:
    mean, var = module.running_mean, module.running_var
    affine = [p.requires_grad for p in (module.weight, module.bias) if p is not None]
    counter = module.num_batches_tracked
    return LayerEvidence(
        name=name,
        eps=module.eps,
        momentum=module.momentum,
        training=module.training,
        tracks=module.track_running_stats,
        frozen=is_frozen(module),
        trains_affine=any(affine) if affine else None,
        mean=mean.detach().double().cpu(),  # pyright: ignore[reportOptionalMemberAccess]
        var=var.detach().double().cpu(),  # pyright: ignore[reportOptionalMemberAccess]
        dtype=var.dtype,  # pyright: ignore[reportOptionalMemberAccess]
        counter=None if counter is None else int(counter),
    )


@contextmanager
def _inputs(modules: dict[str, _BatchNorm], layers: dict[str, LayerEvidence]) -> Iterator[None]:
    """Watch each layer's input for padding and for values that are not finite."""

    def watch(layer: LayerEvidence) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            layer.padding = max(layer.padding, trailing_padding(args[0].detach()))
            layer.finite_input = layer.finite_input and bool(torch.isfinite(args[0]).all())

        return hook

    handles = [m.register_forward_pre_hook(watch(layers[name])) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trailing_padding(x: Tensor) -> float:
    """The fraction of a `(N, C, L)` batch in trailing runs that are exactly zero in every channel.

    0 when all samples end alike: padding is what differs from sample to sample.
    """
    if x.dim() != 3 or x.numel() == 0:
        return 0.0
    zero = (x == 0).all(1)
    run = zero.flip(1).long().cumprod(1).sum(1)
    return float(run.double().mean() / x.shape[2]) if bool((run != run[0]).any()) else 0.0


def _in_eval(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    layers: dict[str, LayerEvidence],
    batch: Any,
    forward_fn: Callable[..., Any] | None,
) -> Any:
    frozen = {name: module for name, module in modules.items() if is_frozen(module)}
    flags = {module: module.training for module in model.modules()}

    # Frozen layers normalise with the stored statistics in either mode: their inputs are measured here.
    def watch(total: Collected) -> Callable[..., None]:
        return lambda module, args: total.add(args[0])

    handles = [m.register_forward_pre_hook(watch(layers[name].collected)) for name, m in frozen.items()]
    try:
        with torch.no_grad():
            model.eval()
            return call(model, batch, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags.items():
            module.training = flag


def _gap(trained: Any, evaluated: Any) -> tuple[float, float] | None:
    """Squared difference and squared size of the first floating output."""
    a, b = _first_output(trained), _first_output(evaluated)
    if a is None or b is None or a.shape != b.shape:
        return None
    return float((a - b).double().square().sum()), float(a.double().square().sum())


def _first_output(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((t for t in map(_first_output, items) if t is not None), None)


def _compare(layer: LayerEvidence) -> None:
    values = layer.collected.values
    if values is None:
        return
    scale = (layer.var.clamp_min(0) + layer.eps).sqrt()
    layer.drift = rms((values.mean.cpu() - layer.mean) / scale)
    layer.standard_error = rms(layer.collected.standard_error.cpu() / scale)
    actual = values.var(1).cpu() + layer.eps
    layer.var_log_ratio = rms((actual / (layer.var.clamp_min(0) + layer.eps)).log())
