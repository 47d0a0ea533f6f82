"""BN434: batches of two kinds that go through the same layers one after the other."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called, said
from batchnorm.diagnosis.source.rules.forwards import inputs, training_forwards
from batchnorm.diagnosis.source.rules.loaders import loaders_of
from batchnorm.diagnosis.source.trace import EVAL, Event

# What the two domains of an adaptation, and the two parts of a batch in semi-supervised learning, are called.
DATA = r"(^|_)(x|data|im|imgs?|images?|inputs?|batch)"
PAIRS = (
    (
        re.compile(r"(^|_)(src|source)(\d*)(_|$)|source|" + DATA + "_?s$"),
        re.compile(r"tgt|target|trg|" + DATA + "_?t$"),
    ),
    (re.compile(r"(^|_)(labell?ed|l|lb|x|sup)(_|$)"), re.compile(r"(^|_)(un_?labell?ed|u|ul|ulb|unsup|unlab)(_|\d|$)")),
    (
        re.compile(r"(^|_)(nat|natural|clean|x|images?|inputs?|data)(_|$)"),
        re.compile(r"(^|_)(adv|adversarial|x_adv|perturbed)(_|$)"),
    ),
)
GENERATORS = re.compile(r"(^|[._])(net_?)?(g|gen|generator|decoder)(_\w+)?$")


def two_loaders(facts: Facts) -> Iterator[Said]:
    """BN434: two forwards in train mode of one model in one training step, each of batches of another kind."""
    found: dict[tuple[int, int], dict[int, Event]] = defaultdict(dict)
    for event, c, _ in training_forwards(facts):
        loops = [n for n in event.data["loops"] if isinstance(n, ast.For | ast.While)]
        if (c.layers is None or c.layers.value != EVAL) and (loops or event.function.name):
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
    """What sets the inputs of two forwards apart: their loaders, their names, that one of them is another's output."""
    loaders = [{id(loader.node) for loader in loaders_of(facts, e)} for e in (one, other)]
    known = facts.has(one.obj) == YES
    if all(loaders) and known and loaders[0].isdisjoint(loaders[1]):
        return "the batches of two loaders"
    a, b = ({w.lower() for w in inputs(e)} for e in (one, other))
    for left, right in PAIRS:
        sides = [
            "right" if any(map(right.search, s)) else "left" if any(map(left.search, s)) else "" for s in (a - b, b - a)
        ]
        if sorted(sides) == ["left", "right"]:
            return "batches of two kinds"
    made = [_generated(facts, e) for e in (one, other)]
    if known and made[0] != made[1] and not GENERATORS.search(called(one).lower()) and facts.evaluated(one.obj):
        return "data and on the outputs of a generator"
    return None


def _generated(facts: Facts, event: Event) -> bool:
    """Whether a forward's input is computed by a generator."""
    made = facts.outputs(event).made_of(event.node)
    return any(
        id(e.node) in made and e.obj is not event.obj and GENERATORS.search(called(e).lower())
        for e in facts.of("forward")
        if e.function is event.function
    )
