"""BN428: a generator sampled in train mode."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called
from batchnorm.diagnosis.source.rules.modes import forwards, generates, infers, is_average, measures
from batchnorm.diagnosis.source.trace import TRAIN


def sampled_in_train(facts: Facts) -> Iterator[Said]:
    """BN428: samples drawn under no_grad in train mode; sure where the weights were loaded and nothing trains."""
    seen: set[int] = set()
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or id(event.node) in seen or not generates(event):
            continue
        if c.no_grad is not True and not infers(facts, event, c):
            continue
        if c.layers is not None or level != YES or measures(facts, event, c) or is_average(facts, c.obj):
            continue
        seen.add(id(event.node))
        name = called(event)
        only = c.loaded and c.mode.node is None and not facts.steps(event.function.module)
        yield Said(
            event.function.module,
            event.node,
            f"{name} is sampled in train mode: each sample depends on the others of its batch, and every call moves "
            "the running statistics" + ("" if only else ", unless this is on purpose"),
            f"{name}.eval() before" + ("" if only else f", {name}.train() after"),
            sure=only,
        )
