"""BN434: batches of two kinds that go through the same layers one after the other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, said
from batchnorm.diagnosis.source.rules.forwards import for_a_step, inputs, training_forwards
from batchnorm.diagnosis.source.rules.loaders import loaders_of
from batchnorm.diagnosis.source.trace import EVAL, Event

# What the two domains of an adaptation, and their batches, are called.
DATA = r"(^|_)(x|data|im|imgs?|images?|inputs?|batch)"
SOURCE = re.compile(r"(^|_)(src|source)(\d*)(_|$)|source|" + DATA + "_?s$")
TARGET = re.compile(r"tgt|target|trg|" + DATA + "_?t$")
DOMAINS = re.compile(r"domain|source|adapt", re.IGNORECASE)


def two_loaders(facts: Facts) -> Iterator[Said]:
    """BN434: two forwards in train mode of one model in one training step, each of batches of another kind."""
    found: dict[tuple[int, int], dict[int, Event]] = defaultdict(dict)
    for event, c, _ in training_forwards(facts):
        loops = [n for n in event.data["loops"] if isinstance(n, ast.For | ast.While)]
        if (c.layers is None or c.layers.value != EVAL) and (loops or event.function.name) and not for_a_step(event, c):
            found[id(loops[-1] if loops else event.function), id(c.obj)][id(event.node)] = event
    for forwards in found.values():
        first, *others = forwards.values()
        for event in others:
            kinds = _kinds(facts, first, event) if event.function is first.function else None
            if kinds is not None:
                yield said(
                    event,
                    f"{called(event)} is trained on {kinds} one after the other (line {first.line}): each is "
                    "normalised with its own statistics, and evaluation uses one mixture",
                    "torch.cat of both batches in one forward, or batch norm layers for each domain",
                    sure=False,
                )
                break


def _kinds(facts: Facts, one: Event, other: Event) -> str | None:
    """What sets the inputs of two forwards apart: their names, or their loaders in a file that speaks of domains."""
    a, b = ({w.lower() for w in inputs(e)} for e in (one, other))
    sides = [2 if any(map(TARGET.search, s)) else int(any(map(SOURCE.search, s))) for s in (a - b, b - a)]
    if sorted(sides) == [1, 2]:
        return "batches of two kinds"
    loaders = [{id(loader.node) for loader in loaders_of(facts, e)} for e in (one, other)]
    apart = all(loaders) and loaders[0].isdisjoint(loaders[1]) and facts.has(one.obj) == YES
    return "the batches of two loaders" if apart and DOMAINS.search(one.function.module.text) else None
