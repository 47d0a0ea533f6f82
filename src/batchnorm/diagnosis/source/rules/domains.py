"""BN434: batches of two loaders that go through the same layers one after the other."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called
from batchnorm.diagnosis.source.rules.forwards import training_forwards
from batchnorm.diagnosis.source.rules.small_batches import LOADER
from batchnorm.diagnosis.source.trace import Event


def two_loaders(facts: Facts) -> Iterator[Said]:
    """BN434: two forwards in train mode of one model in one training step, each of another loader's batches."""
    found: dict[tuple[int, int], dict[int, tuple[Event, frozenset[int]]]] = defaultdict(dict)
    for event, c, _ in training_forwards(facts):
        loops = [n for n in event.data["loops"] if isinstance(n, ast.For | ast.While)]
        if facts.has(c.obj) == YES and c.layers is None and loops:
            sources = _loaders(facts, event)
            if sources:
                found[id(loops[-1]), id(c.obj)][id(event.node)] = (event, sources)
    for forwards in found.values():
        first, *others = forwards.values()
        for event, sources in others:
            if sources.isdisjoint(first[1]) and event.function is first[0].function:
                yield Said(
                    event.function.module,
                    event.node,
                    f"{called(event)} is trained on the batches of two loaders one after the other (line "
                    f"{first[0].line}): each is normalised with its own statistics, and evaluation uses one mixture",
                    "torch.cat of both batches in one forward, or batch norm layers for each domain",
                    sure=False,
                )
                break


def _loaders(facts: Facts, event: Event) -> frozenset[int]:
    """The loaders that a forward's inputs come from."""
    origins = (o for value in event.data["inputs"] for o, path, _ in facts.origins(value) if path[:1] == ("[]",))
    return frozenset(id(o.node) for o in origins if o.kind == "external" and o.info[0] in LOADER)
