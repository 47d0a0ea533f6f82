"""The experiments on a live model, in order; nothing in the model changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from batchnorm.diagnosis.experiments.another_eps import another_eps
from batchnorm.diagnosis.experiments.attribution import shares
from batchnorm.diagnosis.experiments.changes import Change, symmetries
from batchnorm.diagnosis.experiments.conditions import Statistics, as_batch_norm, holding, swapped, sync_on_cpu, write
from batchnorm.diagnosis.experiments.data import PASSES, Data, limits
from batchnorm.diagnosis.experiments.differing import Sample, difference, other_shares
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import Outcome, effect
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.experiments.scores import Metric, Scorer
from batchnorm.diagnosis.experiments.slices import replaced
from batchnorm.diagnosis.experiments.training_step import left_in_eval, left_in_train, training_step
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence, compare, stored
from batchnorm.diagnosis.rules.grounds import TWO_GROUPS, UNLIKE, unlike
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.layers import BatchNorm
from batchnorm.models.batches import call, progress_bar
from batchnorm.models.find import batch_norm_layers, without_layers
from batchnorm.models.modes import is_frozen
from batchnorm.models.recalibration.recalibrating import recalibrate
from batchnorm.models.recalibration.targets import shards, unwrapped
from batchnorm.models.state import held
from batchnorm.models.tracking import tracking

Forward = Callable[..., Any] | None
SOME = 2  # batches on which each symmetry is tried
LEFT = 3.5  # passes over the evaluation data that are left to other experiments
RETURNS = 0.5  # of the gap: less is no reason to believe that a symmetry is the cause


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
    _padding(evidence, lab, data)
    _several_calls(evidence, lab, data)
    _two_kinds(evidence, lab, data)
    _frozen(evidence, lab, data)
    if others is not None:
        _evaluate(evidence, lab, data, sample, others, exact)
    _served(evidence, lab, data, others)
    # The model is called with the batch's first tensor as it is: a hook can change it.
    batch = next(iter(data))[1]
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    evidence.feeds_tensors = lab.forward_fn is None and isinstance(first, Tensor)
    evidence.another_eps = another_eps(lab, data, rows, outcomes["stored"])
    own = [m for m in lab.active.values() if _has_own_forward(m)]
    if own and lab.scorer is not None and data.room(0.5):
        with suppress(UserCodeError):  # a class that turns its input first
            plain = lab.run(data, "as batch norm", as_batch_norm(own), every=2)
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


def _padding(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    if not lab.valid:
        return
    parts = torch.tensor([float((~valid).float().mean()) for valid in lab.valid.values()])
    evidence.padding = float(parts.sum()) / max(evidence.batches, 1)
    full = torch.zeros(evidence.batches)
    full[: len(parts)] = parts
    evidence.padding_varies = float(full.std()) if evidence.batches > 1 else 0.0
    evidence.images = next(iter(lab.valid.values())).dim() == 3
    pairs = {name: evidence.layers[name].without_padding.pair for name in lab.active}
    without = {name: pair for name, pair in pairs.items() if pair is not None}
    if lab.scorer is not None and without and data.room(1):
        tried = lab.run(data, "without_padding", swapped(lab.active, without))
        evidence.padding_effect = _beyond_exact(evidence, lab, "padding left out", tried)


def _beyond_exact(evidence: Evidence, lab: Laboratory, what: str, tried: Outcome) -> Effect:
    """Against exact statistics where they help: that the stored ones are worse may have any cause."""
    evidence.outcomes[tried.condition] = tried
    before = evidence.outcomes["exact" if evidence.statistics.helps else "stored"]
    return effect(what, before, tried, lab.scorer)


def _several_calls(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    """Where layers are called several times in a forward: what statistics of each call's own do."""
    rows = evidence.layers
    if not any(len(rows[name].by_call) > 1 for name in lab.active) or not data.room(1):
        return
    own = {}
    for name in lab.active:
        found = [call.pair for call in rows[name].by_call or [rows[name].collected]]
        own[name] = [pair for pair in found if pair is not None]
    tried = lab.by_call(data, {name: pairs for name, pairs in own.items() if pairs})
    evidence.by_call = _beyond_exact(evidence, lab, "statistics of their own for each call", tried)


def _two_kinds(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    """Where the batches are of two kinds: what statistics of each kind's own do."""
    groups = [layer.inputs.two_groups() for layer in evidence.layers.values() if layer.spread > UNLIKE]
    explained, kinds = max(groups, key=lambda group: group[0], default=(0.0, []))
    if explained <= TWO_GROUPS or len(kinds) != data.batches:
        return
    evidence.domains = kinds
    if not data.room(3):
        return
    own = [lab.recalibrated(data, lambda i, kind=kind: kinds[i] is kind)[0] for kind in (False, True)]
    if own[0] is None or own[1] is None:
        return

    def before(index: int) -> None:
        for name, pair in own[kinds[index]].items():  # pyright: ignore[reportOptionalMemberAccess]
            write(lab.active[name], *pair)

    tried = lab.run(data, "by_domain", swapped(lab.active, own[0]), before=before)
    evidence.by_domain = _beyond_exact(evidence, lab, "statistics of their own for each kind of batch", tried)


def _frozen(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    """Where frozen layers receive what they do not store: what exact statistics in them do."""
    names = [name for name, layer in evidence.layers.items() if layer.frozen and layer.reached]
    if lab.scorer is None or not any(unlike(evidence.layers[name]) for name in names) or not data.room(1):
        return
    layers = {name: lab.layers[name] for name in names}
    tried = lab.run(data, "frozen", swapped(layers, lab.normalised(data, layers)), every=2)
    evidence.frozen = effect("exact statistics in the frozen layers", evidence.outcomes["stored"], tried, lab.scorer)


def _served(evidence: Evidence, lab: Laboratory, data: Data, others: Data | None) -> None:
    """What running statistics do instead of the batch's, where `model.eval()` leaves layers that use the batch's."""
    without = [m for m in batch_norm_layers(lab.model).values() if m.running_mean is None]
    if not (without or evidence.left_in_train) or data.out_of_time:
        return
    judged, prefix = (data, "") if others is None else (others, "eval_")
    served = evidence.outcomes[f"{prefix}stored"] if not evidence.left_in_train else lab.served(judged)
    after = evidence.outcomes.get(f"{prefix}exact" if evidence.statistics.helps else f"{prefix}stored")
    if without:
        with tracking(without):
            names = [name for name, m in batch_norm_layers(lab.model).items() if m in without]
            try:
                recalibrate(lab.model, data.as_loader(), forward_fn=lab.forward_fn, select=names, progress=False)
            except (BatchNormError, ValueError, RuntimeError):
                return
            after = lab.run(judged, "tracked")
    if served is not None and after is not None:
        evidence.outcomes["served"], evidence.outcomes["tracked"] = served, after
        evidence.served = effect("running statistics at evaluation", served, after, lab.scorer)


def _evaluate(
    evidence: Evidence, lab: Laboratory, data: Data, sample: Sample, others: Data, exact: Statistics | None
) -> None:
    """The evaluation data under stored, exact and their own statistics."""
    outcomes, received = evidence.outcomes, {name: Received() for name in lab.layers}
    own_sample = Sample()
    outcomes["eval_stored"] = lab.run(others, "eval_stored", None, received, sample=own_sample)
    evidence.difference = difference(sample, own_sample)
    for name, layer in evidence.layers.items():
        shift = _shift(layer, received[name])
        if shift is not None:
            evidence.eval_shift[name] = shift
    if exact is not None and not others.out_of_time:
        outcomes["eval_exact"] = lab.run(others, "eval_exact", swapped(lab.active, exact))
        evidence.eval_exact = effect(evidence.recalibrate, outcomes["eval_stored"], outcomes["eval_exact"], lab.scorer)
    # What the loader's own statistics repair is not the evaluation data's doing.
    base = "exact" if evidence.statistics.helps and evidence.eval_exact.helps else "stored"
    evidence.eval_gap = _unpaired(outcomes[base], outcomes[f"eval_{base}"], lab.scorer)
    _prior(evidence, lab, others, sample, own_sample)
    found = _symmetry(evidence, lab, others, own_sample) or evidence.difference
    if found.undo is not None and lab.scorer is not None and not others.out_of_time:
        with changed(lab, found.undo):
            outcomes["eval_undone"] = lab.run(others, "eval_undone")
        undone = effect("undone", outcomes["eval_stored"], outcomes["eval_undone"], lab.scorer)
        if found is evidence.difference or _returns(undone, evidence.eval_gap):
            evidence.eval_undone, evidence.difference = undone, found
        else:
            del outcomes["eval_undone"]
    found = evidence.difference
    if found.apply is not None and data.room(0.5):
        with changed(lab, found.apply):
            after = lab.run(data, "applied", every=2)
        evidence.eval_applied = effect("the same done to the loader's inputs", outcomes["stored"], after, lab.scorer)
    own, said = lab.recalibrated(others) if not others.out_of_time else (None, "")
    if own is not None:
        outcomes["eval_own"] = lab.run(others, "eval_own", swapped(lab.active, own))
        what = f"batchnorm.recalibrate(model, eval_loader{said})"
        evidence.evaluation = effect(what, outcomes[f"eval_{base}"], outcomes["eval_own"], lab.scorer)


def _symmetry(evidence: Evidence, lab: Laboratory, others: Data, sample: Sample) -> Change | None:
    """Where the inputs look alike and the metric falls: the order of channels, or turn, that does best on a part."""
    gap, tried = evidence.eval_gap, []
    if evidence.difference.words or not gap.helps or lab.scorer is None or not sample.inputs:
        return None
    every = max(1, others.batches // SOME)
    for change in symmetries(sample.inputs[0]) if sample.inputs[0].is_floating_point() else ():
        if change.undo is None or not others.room(LEFT + SOME / others.batches):
            break
        with changed(lab, change.undo):
            after = lab.run(others, "symmetry", every=every)
        tried.append((effect("", evidence.outcomes["eval_stored"], after, lab.scorer), change))
    best = max(tried, key=lambda pair: pair[0].gain or 0.0, default=None)
    return best[1] if best is not None and (best[0].gain or 0.0) > 0 else None


def _returns(undone: Effect, gap: Effect) -> bool:
    """Whether undoing a symmetry brings back so much of the metric that it is the cause: nothing else shows it."""
    return bool(undone.helps) and (undone.gain or 0.0) >= RETURNS * (gap.gain or 0.0)


def _prior(evidence: Evidence, lab: Laboratory, others: Data, sample: Sample, own: Sample) -> None:
    """Where the labels say that classes have other shares: what weighing the classes by them does."""
    found = other_shares(sample, own)
    if found is None or lab.scorer is None or others.out_of_time:
        return
    evidence.prior_offsets, evidence.prior_explains = offsets, _ = found
    hook = lab.model.register_forward_hook(lambda module, args, output: _plus(output, offsets))
    try:
        after = evidence.outcomes["eval_prior"] = lab.run(others, "eval_prior")
    finally:
        hook.remove()
    evidence.prior = effect("other shares", evidence.outcomes["eval_stored"], after, lab.scorer)


def _plus(output: Any, offsets: Tensor) -> Any:
    fits = isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] == len(offsets)
    return output + offsets.to(output) if fits else output


def changed(lab: Laboratory, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """The model is given other values in the place of its first floating input."""
    before = lab.forward_fn

    def forward(model: nn.Module, batch: Any) -> Any:
        return call(model, replaced(batch, lambda x: change(x) if x.is_floating_point() else x), before)

    return holding([lab], "forward_fn", forward)


def _shift(layer: LayerEvidence, other: Received) -> tuple[float, float, float, float] | None:
    """How far the evaluation data's mean and variance lie from the loader's, each with its error."""
    ours = layer.in_eval
    if ours.values is None or other.values is None:
        return None
    a, b = ours.values, other.values
    scale = (a.var(0) + layer.eps).sqrt()
    moved = ((b.mean - a.mean) / scale).square()
    noise = (ours.standard_error.square() + other.standard_error.square()) / scale.square()
    ratio = (b.var(0) + layer.eps).log() - (a.var(0) + layer.eps).log()
    ratio_noise = (ours.variance_error / (a.var(0) + layer.eps)).square()
    ratio_noise = ratio_noise + (other.variance_error / (b.var(0) + layer.eps)).square()
    found = (moved.mean().sqrt(), noise.mean().sqrt(), ratio.abs().median(), ratio_noise.mean().sqrt())
    return tuple(float(v) for v in found)  # pyright: ignore[reportReturnType]


def _unpaired(before: Outcome, after: Outcome, scorer: Scorer | None) -> Effect:
    """How much worse the metric is on other data; a gain is a loss here."""
    if scorer is None or not scorer.direction or before.mean is None or after.mean is None:
        return Effect("evaluation data", after.samples)
    variance, count = 0.0, 0
    for outcome in (before, after):
        values, sizes = outcome.flat()
        v, w = torch.tensor(values, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
        centre = (v * w).sum() / w.sum()
        variance += float((w.square() * (v - centre).square()).sum() / w.sum().square()) * len(v) / max(len(v) - 1, 1)
        count = len(v) if not count else min(count, len(v))
    chance = scorer.chance()
    scale = abs(before.mean - chance) if chance is not None else abs(before.mean)
    worse = (before.mean - after.mean) * scorer.direction
    return Effect("evaluation data", after.samples, before.mean, after.mean, worse, variance**0.5, count, scale)


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
