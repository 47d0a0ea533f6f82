"""BN428: a generator sampled in train mode."""

from __future__ import annotations

import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, said
from batchnorm.diagnosis.source.rules.forwards import forwards, generates, infers, inputs, is_average, measures, serves
from batchnorm.diagnosis.source.trace import TRAIN, Event

SHOWS = re.compile(
    r"(save|show|plot|draw|log|write|vis\w*)_\w*(img|image|sample|fake|result|grid|pic|figure)|"
    r"(^|_)(fid|inception|valid\w*|evaluat\w*|test|metrics?|scores?)(_|$)"
)
SAVES = re.compile(r"(^|\.)(save_image|make_grid|imsave|imshow|add_images?|imwrite|toimage)$")


def sampled_in_train(facts: Facts) -> Iterator[Said]:
    """BN428: samples drawn under no_grad in train mode; sure where the weights were loaded and nothing trains."""
    shown = (v for e in facts.of("outside", "method") if SAVES.search(e.data["name"]) for v in e.data["args"][:3])
    saved = {id(f) for value in shown for f in facts.forwards_of(value)}
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or not generates(event):
            continue
        used = serves(facts, event, c)
        if c.no_grad is not True and not (used or infers(facts, event, c) or _shown(facts, event, saved)):
            continue
        if c.layers is not None or not facts.has(c.obj) or facts.fate(event).feeds:
            continue
        if measures(facts, event, c) or is_average(facts, c.obj):
            continue
        name = called(event)
        only = c.loaded and c.mode.node is None and not any(facts.steps(f.module) for f in (event.function, c.function))
        only |= used and event.function.owner is not None and c.mode.node is None and not facts.evaluated(c.obj)
        yield said(
            event,
            f"{name} is sampled in train mode: each sample depends on the others of its batch, and every call moves "
            "the running statistics" + ("" if only else ", unless this is on purpose"),
            f"{name}.eval() before" + ("" if only else f", {name}.train() after"),
            sure=only and level == YES,
        )


def _shown(facts: Facts, event: Event, saved: set[int]) -> bool:
    """Whether the samples are there to be looked at: of inputs that are kept for it, or saved where nothing trains."""
    fate = facts.fate(event)
    if any(w.startswith("fixed") for w in inputs(event)):
        return True
    if SHOWS.search(event.function.name.lower()) and not (facts.trains(event) or fate.trains or fate.leaves):
        return True
    return id(event) in saved and bool(event.function.name) and not facts.trains(event)
