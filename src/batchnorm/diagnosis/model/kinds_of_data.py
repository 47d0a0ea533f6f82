"""What other statistics do where layers see more than one kind of data: padding, calls, domains, frozen layers."""

from __future__ import annotations

from contextlib import suppress

import torch

from batchnorm.diagnosis.experiments.conditions import as_batch_norm, swapped, write
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.diagnosis.experiments.outcome import Outcome, effect
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.grounds import TWO_GROUPS, UNLIKE, unlike
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.models.find import batch_norm_layers
from batchnorm.models.recalibration.recalibrating import recalibrate
from batchnorm.models.tracking import tracking


def padding(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    """Where batches say what is padding: how much there is, and what statistics without it do."""
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


def several_calls(evidence: Evidence, lab: Laboratory, data: Data) -> None:
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


def two_kinds(evidence: Evidence, lab: Laboratory, data: Data) -> None:
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


def frozen(evidence: Evidence, lab: Laboratory, data: Data) -> None:
    """Where frozen layers receive what they do not store: what exact statistics in them do."""
    names = [name for name, layer in evidence.layers.items() if layer.frozen and layer.reached]
    if lab.scorer is None or not any(unlike(evidence.layers[name]) for name in names) or not data.room(1):
        return
    layers = {name: lab.layers[name] for name in names}
    tried = lab.run(data, "frozen", swapped(layers, lab.normalised(data, layers)), every=2)
    evidence.frozen = effect("exact statistics in the frozen layers", evidence.outcomes["stored"], tried, lab.scorer)


def served(evidence: Evidence, lab: Laboratory, data: Data, others: Data | None) -> None:
    """What running statistics do instead of the batch's, where `model.eval()` leaves layers that use the batch's."""
    without = [m for m in batch_norm_layers(lab.model).values() if m.running_mean is None]
    own = [lab.layers[name] for name in evidence.uses_batch]
    if not (without or own or evidence.left_in_train) or data.out_of_time:
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
    elif own:
        with suppress(UserCodeError):  # a class that turns its input first
            after = lab.run(judged, "tracked", as_batch_norm(own))
    if served is not None and after is not None:
        evidence.outcomes["served"], evidence.outcomes["tracked"] = served, after
        evidence.served = effect("running statistics at evaluation", served, after, lab.scorer)
