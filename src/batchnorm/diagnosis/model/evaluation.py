"""The evaluation data under stored, exact and its own statistics, and with what was done to it undone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.diagnosis.experiments.changes import Change, symmetries
from batchnorm.diagnosis.experiments.class_shares import other_shares
from batchnorm.diagnosis.experiments.conditions import Statistics, holding, swapped
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.differing import difference
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import Outcome, effect
from batchnorm.diagnosis.experiments.received import Received
from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.experiments.scores import Scorer
from batchnorm.diagnosis.experiments.slices import replaced
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.models.batches import call

SOME = 96  # samples on which each symmetry is tried
LEFT = 3.5  # passes over the evaluation data that are left to other experiments
RETURNS = 0.5  # of the gap: less is no reason to believe that a symmetry is the cause


def evaluate(
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
        said = evidence.difference
        if found is said or said.among or _returns(undone, evidence.eval_gap):
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
    """Where the inputs look alike and the metric falls: the order of channels, or turn, that does best on a part.

    Or which one of several it is, where the inputs leave that open.
    """
    gap, tried = evidence.eval_gap, []
    among = evidence.difference.among
    if (evidence.difference.words and not among) or not gap.helps or lab.scorer is None or not sample.inputs:
        return None
    # As many batches as hold so many samples; the best is tried on all.
    some = min(others.batches, -(-SOME * others.batches // max(others.samples, 1)))
    every = max(1, others.batches // some)
    for change in among or (symmetries(sample.inputs[0]) if sample.inputs[0].is_floating_point() else ()):
        if change.undo is None or not others.room(LEFT + 1 / every):
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
