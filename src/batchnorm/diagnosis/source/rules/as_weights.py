"""BN432: running statistics moved like weights, by corrections and by momentum on every entry of a state."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import LIKELY, YES
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.rules.averages import level_of, takes_off, takes_some
from batchnorm.diagnosis.source.syntax import strings
from batchnorm.diagnosis.source.trace import Event
from batchnorm.diagnosis.source.values import Poly

LEAST_DECAY = 0.9


def moved_as_weights(facts: Facts) -> Iterator[Said]:
    """BN432: `state[k] = state[k] - rate * (a[k] - b[k])`, or a momentum of such differences, for every entry."""
    seen: set[int] = set()
    for event in facts.of("write"):
        loop = event.loop
        if event.data["atom"].kind != "entry" or loop is None or id(loop) in seen:
            continue
        decays = _decays(facts, event, loop)
        if not decays and (not any(takes_off(now, at) for now, at, _ in event.data["values"]) or takes_some(loop)):
            continue
        level = level_of(facts, event)
        if level in (YES, LIKELY):
            seen.add(id(loop))
            yield said(
                event,
                f"every entry of the state is {'decayed' if decays else 'moved by a difference'}, running_mean, "
                "running_var and the counter too, as if they were weights: the statistics fit no network",
                "take named_parameters() only, and the statistics of one model or their average",
                sure=level == YES and (decays or facts.uses(event.function, "load_state_dict")),
            )


def _shrinks(weight: Poly) -> bool:
    """Whether a weight is a little below 1: a number, or 1 less something."""
    one = weight.get((), 0.0)
    rest = [v for k, v in weight.items() if k]
    return (one == 1 and all(v < 0 for v in rest)) if rest else LEAST_DECAY <= one < 1


def _decays(facts: Facts, event: Event, loop: ast.For) -> bool:
    """Whether an entry is scaled in place, and nothing is added to it in the same loop."""
    forms = [(now, at) for now, at, _ in event.data["values"]]
    augmented = isinstance(event.node, ast.AugAssign) and isinstance(event.node.op, ast.Mult)
    if not (event.data.get("in_place") == "mul_" or augmented) or not forms:
        return False
    if not all(list(now.terms) == [at] and _shrinks(now.terms[at]) for now, at in forms):
        return False
    inside = {id(n) for n in ast.walk(loop)}
    if strings(loop) or any(id(t.node) in inside for t in event.data["tests"]):
        return False  # of some entries
    beside = (e for e in facts.of("write") if e is not event and loop in e.data["loops"])
    return not any(e.data["atom"].owner is event.data["atom"].owner for e in beside)
