"""BN432: running statistics moved like weights, by corrections and by momentum on every entry of a state."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said
from batchnorm.diagnosis.source.rules.averages import level_of, takes_off, takes_some
from batchnorm.diagnosis.source.trace import Event


def moved_as_weights(facts: Facts) -> Iterator[Said]:
    """BN432: `state[k] = state[k] - rate * (a[k] - b[k])`, or a momentum of such differences, for every entry."""
    seen: set[int] = set()
    for event in facts.of("write"):
        loop = next((n for n in reversed(event.data["loops"]) if isinstance(n, ast.For)), None)
        if event.data["atom"].kind != "entry" or loop is None or id(loop) in seen:
            continue
        if not any(takes_off(now, at) for now, at, _ in event.data["values"]) or takes_some(loop):
            continue
        level = level_of(facts, event)
        if level in (YES, LIKELY):
            seen.add(id(loop))
            yield Said(
                event.function.module,
                event.node,
                "every entry of the state is moved by a difference, running_mean, running_var and the counter too, as "
                "if they were weights: a variance can become negative, and the statistics fit no network",
                "take named_parameters() only, and the statistics of one model or their average",
                sure=level == YES and _used(facts, event),
            )


def _used(facts: Facts, event: Event) -> bool:
    """Whether the function loads a state into a model afterwards."""
    return facts.uses(event.function, "load_state_dict")
