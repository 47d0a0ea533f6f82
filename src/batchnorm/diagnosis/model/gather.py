"""The experiments on a live model, in order; nothing in the model changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from batchnorm.diagnosis.experiments.another_eps import another_eps
from batchnorm.diagnosis.experiments.attribution import shares
from batchnorm.diagnosis.experiments.conditions import Statistics, as_batch_norm, swapped, sync_on_cpu
from batchnorm.diagnosis.experiments.data import PASSES, Data, limits
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import effect
from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.experiments.scores import Metric, Scorer
from batchnorm.diagnosis.experiments.training_step import left_in_eval, left_in_train, training_step
from batchnorm.diagnosis.experiments.uses_batch import using_batch
from batchnorm.diagnosis.model import kinds_of_data
from batchnorm.diagnosis.model.evaluation import evaluate
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import compare, stored
from batchnorm.diagnosis.rules.grounds import UNLIKE
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.layers import BatchNorm
from batchnorm.models.batches import progress_bar
from batchnorm.models.find import batch_norm_layers, without_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.recalibration.targets import shards, unwrapped
from batchnorm.models.state import held

Forward = Callable[..., Any] | None


def gather(
    model: nn.Module,
    loader: Iterable[Any],
    forward_fn: Forward = None,
    metric: Metric | None = None,
    eval_loader: Iterable[Any] | None = None,
    attribution: bool = True,
    budget: int | str | None = None,
    higher_is_better: bool | None = None,
    progress: bool = False,
) -> Evidence:
    """Measure a model on a loader; raises `BatchNormError` for a model or loader that has nothing to measure."""
    samples, seconds = limits(budget)
    every = batch_norm_layers(model)
    if not every:
        raise without_layers(model)
    if shards(model):
        raise BatchNormError("model must not be sharded (FSDP): gather its state into a plain model, and diagnose that")
    inner = unwrapped(model)
    every = batch_norm_layers(inner)
    layers = {name: m for name, m in every.items() if m.running_mean is not None}
    evidence = Evidence({name: stored(name, m) for name, m in layers.items()})
    evidence.without_statistics = [name for name in every if name not in layers]
    evidence.random_modules = _random_modules(inner)
    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    on_cpu = all(getattr(m.running_mean, "is_cpu", False) for m in layers.values())
    evidence.sync_refused = group and on_cpu and any(type(m) is SyncBatchNorm for m in layers.values())
    data = Data(loader, samples, seconds)
    half = None if seconds is None else seconds / 2
    others = None if eval_loader is None else Data(eval_loader, samples, half, "eval_loader")
    scorer = None if metric is None else Scorer(metric, higher_is_better)
    bar = progress_bar(range(int(PASSES) * length_hint(loader, 1)), True, "diagnosing") if progress else nullcontext()
    with held(inner), sync_on_cpu(layers), bar as advance:
        evidence.left_in_eval = left_in_eval(inner, layers)
        for name in evidence.left_in_eval:
            evidence.layers[name].frozen = True
        active = {n: m for n, m in layers.items() if not is_frozen(m) and n not in evidence.left_in_eval}
        lab = Laboratory(inner, layers, active, forward_fn, scorer, advance or (lambda steps: None))
        _measure(evidence, lab, data, others, attribution)
    return evidence


def _measure(evidence: Evidence, lab: Laboratory, data: Data, others: Data | None, attribution: bool) -> None:
    """The experiments, from the ones that everything rests on to those that a short budget leaves out."""
    rows, outcomes = evidence.layers, evidence.outcomes
    sample, received = Sample(), {name: layer.in_eval for name, layer in rows.items()}
    outcomes["stored"] = lab.run(data, "stored", None, received, sample=sample)
    switched = {name for name, layer in lab.layers.items() if layer in lab.switched and not is_frozen(layer)}
    evidence.left_in_train = left_in_train(lab.model, lab.layers) | switched
    own = {name: m for name, m in lab.active.items() if _has_own_forward(m)}
    evidence.uses_batch = using_batch(lab, data, own) - evidence.left_in_train if own else set()
    for layer in rows.values():
        if layer.frozen:
            # Frozen layers normalise with the stored statistics in either mode.
            layer.collected = layer.in_eval
    outcomes["batch"] = lab.batch(data, rows) if lab.active else outcomes["stored"]
    evidence.samples, evidence.batches = data.samples, data.batches
    evidence.offered, evidence.partial = data.offered, data.partial
    if outcomes["batch"].batches:
        rest = lab.rest_in_train(data, outcomes["stored"])
        evidence.rest_gap = 0.0 if rest is None else rest.distance(outcomes["stored"])
        if rest is not None:
            lab.rest_received(data, rows)
            if lab.scorer is not None:
                outcomes["rest"] = rest
                evidence.rest_effect = effect("dropout off", rest, outcomes["stored"], lab.scorer)
    for layer in rows.values():
        if not layer.inputs.finite and layer.sound:
            raise BatchNormError(f"loader must give finite activations; NaN or infinity reached layer {layer.name!r}")
        compare(layer)
    exact = _exact(evidence, lab, data)
    if exact is not None and attribution and not data.out_of_time:
        _attribute(evidence, lab, data, exact)
    kinds_of_data.padding(evidence, lab, data)
    kinds_of_data.several_calls(evidence, lab, data)
    kinds_of_data.two_kinds(evidence, lab, data)
    kinds_of_data.frozen(evidence, lab, data)
    if others is not None:
        evaluate(evidence, lab, data, sample, others, exact)
    kinds_of_data.served(evidence, lab, data, others)
    # The model is called with the batch's first tensor as it is: a hook can change it.
    batch = next(iter(data))[1]
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    evidence.feeds_tensors = lab.forward_fn is None and isinstance(first, Tensor)
    evidence.another_eps = another_eps(lab, data, rows, outcomes["stored"])
    if own and lab.scorer is not None and data.room(0.5):
        with suppress(UserCodeError):  # a class that turns its input first
            plain = lab.run(data, "as batch norm", as_batch_norm(own.values()), every=2)
            evidence.as_batch_norm = effect("torch's batch norm", outcomes["stored"], plain, lab.scorer)
    if outcomes["batch"].batches:
        evidence.step = training_step(lab.model, lab.layers, batch, lab.forward_fn)
        for name, moved in evidence.step.moved.items():
            rows[name].modes = {"train": 1} if moved or name not in evidence.left_in_eval else {"eval": 1}
    if lab.scorer is not None:
        evidence.knows = lab.scorer.knows
    evidence.labelled = lab.scorer is not None and not lab.scorer.given
    evidence.passes = data.passes
    evidence.exact = exact or {}
    evidence.attempt = partial(_attempt, evidence, lab, data)


def _has_own_forward(layer: nn.Module) -> bool:
    return type(layer).forward is not _BatchNorm.forward and not isinstance(layer, (SyncBatchNorm, BatchNorm))


def _exact(evidence: Evidence, lab: Laboratory, data: Data) -> Statistics | None:
    """Recalibrate, measure and put back."""
    exact, said = lab.recalibrated(data)
    outcomes = evidence.outcomes
    if exact is None:
        evidence.exact_refused = said
        return None
    evidence.exact_options = said
    outcomes["exact"] = lab.run(data, "exact", swapped(lab.active, exact))
    noise = None
    between = outcomes["batch"].distance(outcomes["exact"])
    if between is not None and math.isfinite(between):
        moments = [layer.momentum for layer in evidence.layers.values() if layer.momentum and 0 < layer.momentum <= 1]
        weight = sorted(moments)[len(moments) // 2] / 2 if moments else 0.0
        noise = between * (weight + 1 / max(evidence.batches, 1)) ** 0.5
    evidence.statistics = effect(evidence.recalibrate, outcomes["stored"], outcomes["exact"], lab.scorer, noise)
    if outcomes["batch"].batches:
        evidence.by_batch = effect("the batch's statistics", outcomes["exact"], outcomes["batch"], lab.scorer)
    return exact


def _attribute(evidence: Evidence, lab: Laboratory, data: Data, exact: Statistics) -> None:
    rows = evidence.layers
    unlike = any(layer.spread > UNLIKE for layer in rows.values())
    right = dict(exact)
    for name in lab.active:
        pair = rows[name].collected.pair
        # What batches of one kind each are normalised to is not what the layers see at inference.
        if pair is not None and not unlike:
            right[name] = pair
    kept = {name: (rows[name].mean, rows[name].var) for name in right}
    order = sorted(right, key=lambda name: -_rank(rows[name].divergence))
    found, evidence.attributed = lab.damage(data, right, kept, order)
    for name, share in shares(found).items():
        rows[name].damage, rows[name].share = found[name], share


def _rank(divergence: float) -> float:
    return divergence if divergence == divergence else math.inf


def _attempt(evidence: Evidence, lab: Laboratory, data: Data, what: str, statistics: Statistics) -> Effect | None:
    """Other statistics in some layers, on every second batch, while there is room; the model is held still."""
    if not data.room(0.5):
        return None
    with held(lab.model), sync_on_cpu(lab.layers):
        after = evidence.outcomes[what] = lab.run(data, what, swapped(lab.active, statistics), every=2)
    evidence.passes = data.passes
    return effect(what, evidence.outcomes["stored"], after, lab.scorer)


def _random_modules(model: nn.Module) -> list[str]:
    """Modules that do something else in train mode by their class: dropout, stochastic depth, RReLU."""
    return [
        name
        for name, m in model.named_modules()
        if (isinstance(m, (nn.modules.dropout._DropoutNd, nn.RReLU)) and getattr(m, "p", 1.0) > 0)
        or any(word in type(m).__name__.lower() for word in ("droppath", "stochasticdepth", "dropconnect"))
    ]
