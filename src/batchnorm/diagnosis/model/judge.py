"""From what the rules found to what is said: harm that was measured, fixes that were tried, causes that compete."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import ORDER, Finding, Rule
from batchnorm.diagnosis.model.evidence import RECALIBRATE, Evidence
from batchnorm.diagnosis.rules.grounds import by_statistics

LEAST = 0.1  # of the gap: a cause that explains less is a note beside others
MOST_ALONE = 3  # causes that are repaired alone
STEPS = 4  # shares are ranked in quarters
GENERAL = ("BN104", "BN110", "BN132")  # what a cause with a name of its own looks like too


def judge(evidence: Evidence, rules: Iterable[Rule]) -> list[Finding]:
    """All findings, causes first: by the share of the gap that they explain, then as the rules are ordered."""
    place: dict[str, int] = {}
    grounds: dict[str, Effect | None] = {}
    found: list[Finding] = []
    for index, rule in enumerate(rules):
        place[rule.code] = index
        effect = grounds[rule.code] = rule.predicts(evidence) if rule.predicts else None
        found += [_judged(finding, effect, evidence) for finding in rule.apply(evidence)]
    if any(f.severity != "note" and f.code != "BN132" and _by_statistics(grounds[f.code], evidence) for f in found):
        found = [f for f in found if f.code != "BN132"]
    found = _competing(found, grounds, evidence)
    return sorted(found, key=lambda f: _order(f, place))


def _order(finding: Finding, place: dict[str, int]) -> tuple[int, int, int, int]:
    """Notes last; a share in quarters, where a cause with a name of its own that explains one goes before BN104."""
    share = 1.0 if finding.share is None else finding.share
    note = finding.severity == "note"
    part = round(STEPS * share)
    if part >= 1 and finding.code not in GENERAL:
        part = STEPS + 1
    return note, 0 if note else -part, ORDER.index(finding.severity), place[finding.code]


def _by_statistics(effect: Effect | None, evidence: Evidence) -> bool:
    return effect is not None and effect is by_statistics(evidence)


def _judged(finding: Finding, effect: Effect | None, evidence: Evidence) -> Finding:
    """A note where the effect does no harm; what the fix did, or why it is not advised."""
    fix = finding.fix.replace(RECALIBRATE, evidence.recalibrate)
    severity, tried = finding.severity, ""
    if effect is not None and effect.helps is not None:
        tried = effect.sentence("tried on a copy" if _repairs(fix) else "measured")
        if not effect.helps:
            severity = "note"
    elif _repairs(fix) and evidence.statistics.helps is not None:
        tried = by_statistics(evidence).sentence()
    if _repairs(fix):
        fix = _advised(fix, by_statistics(evidence), evidence)
    if evidence.exact_refused and _repairs(fix) and (effect is None or effect.helps is None):
        tried = f"not tried: {evidence.exact_refused}"
    if finding.code in ("BN121", "BN131"):
        tried = _on_evaluation_data(effect, evidence)
    return replace(finding, severity=severity, fix=fix, tried=tried)


def _repairs(fix: str) -> bool:
    return "batchnorm.recalibrate(model, loader" in fix


def _advised(fix: str, effect: Effect, evidence: Evidence) -> str:
    """Take advice back that harms, or that does not help beyond noise."""
    call = evidence.recalibrate
    if effect.harms:
        return f"keep the statistics: {call} makes the metric worse"
    if effect.helps is False and fix.startswith(call):
        return f"nothing to repair: {call} changes nothing beyond noise"
    return fix


def _on_evaluation_data(effect: Effect | None, evidence: Evidence) -> str:
    parts = []
    if effect is not None and effect is evidence.eval_gap and effect.measured:
        parts.append(f"metric {effect.before:.4g} on the loader, {effect.after:.4g} on the evaluation data")
    own, undone = evidence.evaluation, evidence.prior if effect is evidence.prior else evidence.eval_undone
    if undone is not None and undone.measured:
        parts.append(f"with that undone {undone.before:.4g} -> {undone.after:.4g} (+- {undone.error:.2g})")
    if own.helps is not None:
        parts.append(f"{own.what}: {own.sentence()}")
    return "; ".join(parts)


def _competing(found: list[Finding], grounds: dict[str, Effect | None], evidence: Evidence) -> list[Finding]:
    """The share of the gap that each cause explains: its layers alone with right statistics, where causes differ."""
    effect = by_statistics(evidence)
    causes: dict[str, list[str]] = {}
    for finding in found:
        if finding.severity != "note" and _by_statistics(grounds[finding.code], evidence):
            causes.setdefault(finding.code, []).append(finding.layer)
    if not causes or effect is not evidence.statistics or not effect.measured:
        return found
    shares: dict[str, float] = {}
    sets = {code: frozenset(names) for code, names in causes.items()}
    everything = frozenset(name for name, layer in evidence.layers.items() if not layer.frozen)
    alone: dict[frozenset[str], float] = {}
    for code, names in sets.items():
        whole = names == everything or names == {""} or len(set(sets.values())) == 1
        if whole:
            shares[code] = 1.0
        elif names in alone:
            shares[code] = alone[names]
        elif len(alone) < MOST_ALONE and (part := evidence.repair(sorted(names))) is not None:
            gain, total = part.gain or 0.0, effect.gain or 0.0
            alone[names] = shares[code] = min(max(gain / total, 0.0), 1.0) if total > 0 else 1.0
    top = max(shares.values(), default=0.0)
    return [_shared(f, shares.get(f.code) if f.severity != "note" else None, top) for f in found]


def _shared(finding: Finding, share: float | None, top: float) -> Finding:
    if share is None:
        return finding
    if share < LEAST <= top:
        return replace(finding, severity="note", share=share)
    return replace(finding, share=share)
