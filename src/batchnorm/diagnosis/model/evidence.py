"""What is measured on a live model: everything the rules rest on, and nothing in the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from batchnorm.diagnosis.model.attribution import attribute
from batchnorm.diagnosis.model.choices import Choices, Metric, distance
from batchnorm.diagnosis.model.layer import LayerEvidence, compare, stored
from batchnorm.diagnosis.model.probe import Probe, probe_training_step
from batchnorm.errors import BatchNormError
from batchnorm.models.batches import call, count_samples
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.recalibrate import Collected, collecting
from batchnorm.models.state import evaluating, in_mode, preserved

KEPT = 16  # batches of a loader that cannot be indexed, kept for the comparison of the choices
SPREAD = 3.0  # of the batches' means, in units of what shuffled batches would give: above, batches are not alike
Forward = Callable[..., Any] | None


@dataclass
class Evidence:
    """The whole model: its layers, the outputs and the metric under each choice, and a training step rolled back.

    output_gap is the relative distance between the outputs with the batch's statistics and with the
    stored ones, everything else in eval; rest_gap the distance that everything but batch norm makes
    when it alone is in train mode; data_shift how far the evaluation data lie from the loader's.
    """

    layers: dict[str, LayerEvidence]
    samples: int = 0
    batches: int = 0
    output_gap: float | None = None
    probe: Probe | None = None
    rest_gap: float | None = None
    random_modules: list[str] = field(default_factory=list)
    without_statistics: list[str] = field(default_factory=list)
    choices: Choices = field(default_factory=Choices)
    data_shift: dict[str, tuple[float, float]] = field(default_factory=dict)
    sync_refused: bool = False


def gather(
    model: nn.Module,
    loader: Iterable[Any],
    forward_fn: Forward,
    metric: Metric | None = None,
    eval_loader: Iterable[Any] | None = None,
    attribution: bool = True,
) -> Evidence:
    """Measure a model on a loader; raises `BatchNormError` for a model or loader that has nothing to measure."""
    every = batch_norm_layers(model)
    modules = {name: m for name, m in every.items() if m.running_mean is not None}
    if not every:
        raise BatchNormError(
            f"model must contain a batch norm layer with running statistics; {type(model).__name__} has none"
        )
    evidence = Evidence({name: stored(name, m) for name, m in modules.items()})
    evidence.without_statistics = [name for name in every if name not in modules]
    evidence.random_modules = _random_modules(model)
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    on_cpu = all(getattr(m.running_mean, "is_cpu", False) for m in modules.values())
    evidence.sync_refused = group and on_cpu and any(type(m) is SyncBatchNorm for m in modules.values())
    with preserved(model), _sync_on_cpu(modules):
        kept = _measure(model, modules, evidence, loader, forward_fn)
        if any(layer.spread > SPREAD for layer in evidence.layers.values()):
            _measure_in_eval(model, modules, evidence.layers, kept, forward_fn)
        for layer in evidence.layers.values():
            if not layer.inputs.finite and layer.sound:
                raise BatchNormError(
                    f"loader must give finite activations; NaN or infinity reached layer {layer.name!r}"
                )
            compare(layer)
        fresh = {
            name: (layer.collected.values.mean, layer.collected.values.var(1))
            for name, layer in evidence.layers.items()
            if layer.collected.values is not None and not layer.frozen
        }
        if not kept:
            return evidence
        evidence.choices.compare(model, modules, fresh, kept, forward_fn, metric)
        if attribution and fresh:
            attribute(model, modules, fresh, kept[0], forward_fn, evidence.layers)
        if eval_loader is not None:
            _measure_shift(model, modules, evidence, eval_loader, forward_fn)
        evidence.probe = probe_training_step(model, modules, kept[0], forward_fn)
    return evidence


def _measure(
    model: nn.Module, modules: dict[str, _BatchNorm], evidence: Evidence, loader: Iterable[Any], forward_fn: Forward
) -> list[Any]:
    kept: list[Any] = []
    gaps: list[tuple[float, float]] = []
    rest: list[tuple[float, float]] = []
    layers = evidence.layers
    active = {name: module for name, module in modules.items() if not is_frozen(module)}
    keep = len(loader) if isinstance(loader, (list, tuple)) else KEPT
    for batch in loader:
        for layer in layers.values():
            layer.inputs.start_batch()
        try:
            with collecting(model, active) as got, _inputs(modules, layers):
                trained = call(model, batch, forward_fn)
        except ValueError:
            if all(layer.inputs.single is None for layer in layers.values()):
                raise
            evidence.batches += 1
            continue
        for name, part in got.items():
            layers[name].collected.merge(part)
        evaluated = _evaluate(model, modules, layers, batch, forward_fn)
        gaps += [gap for gap in [distance(trained, evaluated)] if gap]
        if evidence.batches < 4 or (rest and rest[0][0] > 0):
            noisy = _rest_in_train(model, modules, active, layers, batch, forward_fn, evaluated)
            rest += [noisy] if noisy else []
        if len(kept) < keep:
            kept.append(batch)
        evidence.samples += count_samples(batch)
        evidence.batches += 1
    if evidence.batches == 0:
        raise BatchNormError("loader must yield at least one batch; it was empty")
    evidence.output_gap, evidence.rest_gap = _relative(gaps), _relative(rest)
    if not evidence.rest_gap:
        for layer in layers.values():
            layer.with_rest_in_train = Collected()
    return kept


def _relative(gaps: list[tuple[float, float]]) -> float | None:
    power = sum(p for _, p in gaps)
    return (sum(g for g, _ in gaps) / power) ** 0.5 if power > 0 else None


def _measure_in_eval(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    layers: dict[str, LayerEvidence],
    batches: list[Any],
    forward_fn: Forward,
) -> None:
    """What the layers receive in eval mode.

    Batches of one kind each (a loader sorted by class) normalised by themselves send other values on
    than the network sees in use, so layers behind the first seem to drift that do not.
    """

    def watch(total: Collected) -> Callable[..., None]:
        return lambda module, args: total.add(args[0])

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(watch(layers[name].in_eval)).remove)
        stack.enter_context(evaluating(model))
        for batch in batches:
            call(model, batch, forward_fn)


@contextmanager
def _inputs(modules: dict[str, _BatchNorm], layers: dict[str, LayerEvidence]) -> Iterator[None]:
    """Watch each layer's input."""

    def watch(layer: LayerEvidence) -> Callable[..., None]:
        return lambda module, args: layer.inputs.add(args[0], layer.mean, layer.scale)

    handles = [m.register_forward_pre_hook(watch(layers[name])) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _evaluate(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    layers: dict[str, LayerEvidence],
    batch: Any,
    forward_fn: Forward,
) -> Any:
    # Frozen layers normalise with the stored statistics in either mode: their inputs are measured here.
    def watch(total: Collected) -> Callable[..., None]:
        return lambda module, args: total.add(args[0])

    with ExitStack() as stack:
        for name, module in modules.items():
            if is_frozen(module):
                stack.callback(module.register_forward_pre_hook(watch(layers[name].collected)).remove)
        stack.enter_context(evaluating(model))
        return call(model, batch, forward_fn)


def _rest_in_train(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    active: dict[str, _BatchNorm],
    layers: dict[str, LayerEvidence],
    batch: Any,
    forward_fn: Forward,
    evaluated: Any,
) -> tuple[float, float] | None:
    """Everything but batch norm in train mode: how far the output moves, and what the layers receive then."""
    normalising = list(batch_norm_layers(model).values())
    with preserved(model), torch.no_grad(), in_mode(model, True, but=normalising):
        torch.manual_seed(0)
        noisy = distance(call(model, batch, forward_fn), evaluated)
    if noisy is None or noisy[0] == 0:
        return noisy
    with preserved(model), collecting(model, active) as got:
        torch.manual_seed(0)
        for module in model.modules():
            module.training = not isinstance(module, _BatchNorm) or module in active.values()
        call(model, batch, forward_fn)
    for name, part in got.items():
        layers[name].with_rest_in_train.merge(part)
    return noisy


def _random_modules(model: nn.Module) -> list[str]:
    """Modules that do something else in train mode by their class: dropout, stochastic depth, RReLU."""
    return [
        name
        for name, m in model.named_modules()
        if (isinstance(m, (nn.modules.dropout._DropoutNd, nn.RReLU)) and getattr(m, "p", 1.0) > 0)
        or any(word in type(m).__name__.lower() for word in ("droppath", "stochasticdepth", "dropconnect"))
    ]


class _Local(_BatchNorm):
    """SyncBatchNorm without its refusal of the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@contextmanager
def _sync_on_cpu(modules: dict[str, _BatchNorm]) -> Iterator[None]:
    """Let a SyncBatchNorm on the CPU run as the plain layer it is in one process."""
    swapped_out = [m for m in modules.values() if type(m) is SyncBatchNorm and getattr(m.running_mean, "is_cpu", False)]
    try:
        for module in swapped_out:
            module.__class__ = _Local  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for module in swapped_out:
            module.__class__ = SyncBatchNorm


def _measure_shift(
    model: nn.Module, modules: dict[str, _BatchNorm], evidence: Evidence, loader: Iterable[Any], forward_fn: Forward
) -> None:
    """Where the evaluation data lie, seen by each layer with right statistics for the training data."""
    active = {name: m for name, m in modules.items() if not evidence.layers[name].frozen}
    total = {name: Collected() for name in active}
    for batch in loader:
        with collecting(model, active) as got:
            call(model, batch, forward_fn)
        for name, part in got.items():
            total[name].merge(part)
    for name, other in total.items():
        values = evidence.layers[name].collected.values
        if values is None or other.values is None:
            continue
        scale = (values.var(1) + evidence.layers[name].eps).sqrt()
        shift = ((other.values.mean - values.mean) / scale).square().mean().sqrt()
        error = (other.standard_error.square() + evidence.layers[name].collected.standard_error.square()).sqrt() / scale
        evidence.data_shift[name] = (float(shift), float(error.square().mean().sqrt()))
