"""BN430: a pretrained model of which the optimizer has one part, trained in train mode."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called, spelled
from batchnorm.diagnosis.source.rules.forwards import forwards
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Event
from batchnorm.diagnosis.source.values import Obj, canonical, options

HEADS = ("fc", "classifier", "head", "last_linear", "_fc", "fc2", "logits", "last_layer", "output")


def left_out(facts: Facts) -> Iterator[Said]:
    """BN430: `Adam(model.fc.parameters())`: the rest is fixed, and its running statistics move."""
    new = {
        id(o): canonical(e.obj)
        for e in facts.of("attribute")
        if e.data["name"] in HEADS
        for o in options(e.data["value"])
    }
    parts = [(e, p) for e in facts.optimizers for p in _heads(e, new)]
    frozen = {id(o) for e in facts.of("freeze") for o in facts.aliases(e.obj)}
    seen: set[int] = set()
    for event, c, _ in forwards(facts) if parts else ():
        if c.mode.value not in (TRAIN, SWITCHED) or c.no_grad is True or not facts.trains(event) or not c.loaded:
            continue
        if facts.has(c.obj) != YES or c.layers is not None:
            continue
        same = {id(o) for o in facts.aliases(c.obj)}
        if same & (frozen | facts.trained):
            continue  # BN406 speaks of a frozen one
        for optimizer, owner in parts:
            made = owner.kind == "self" and any(o.info is owner.info for o in facts.aliases(c.obj))
            if id(optimizer.node) in seen or not (made or any(id(o) in same for o in facts.aliases(owner))):
                continue
            if _others(facts, optimizer, new):
                continue
            seen.add(id(optimizer.node))
            text = (
                spelled(optimizer.node.args[0]) if isinstance(optimizer.node, ast.Call) and optimizer.node.args else ""
            )
            yield Said(
                optimizer.function.module,
                optimizer.node,
                f"only {text} is trained, but every forward in train mode (line {event.line} of "
                f"{event.function.module.path.rsplit('/', 1)[-1]}) normalises with the batch and moves the running "
                f"statistics of all of {called(event)}",
                f"batchnorm.freeze({called(event)})",
            )


def _heads(optimizer: Event, new: dict[int, Any]) -> list[Obj]:
    """The models of which an optimizer was given the head's parameters alone; `new`: heads that were put in."""
    value = optimizer.data["args"][0] if optimizer.data["args"] else optimizer.data["keywords"].get("params")
    found = []
    for option in options(value):
        owner = option.info[0] if isinstance(option, Obj) and option.kind == "iteration" else None
        if isinstance(owner, Obj) and id(owner) in new:
            found.append(new[id(owner)])
        elif isinstance(owner, Obj) and owner.kind == "attribute" and owner.name in HEADS and owner.parent is not None:
            found.append(canonical(owner.parent))
        else:
            return []
    return found


def _others(facts: Facts, optimizer: Event, new: dict[int, Any]) -> bool:
    """Whether another optimizer of the file has, or may have, the rest."""
    for other in facts.optimizers:
        if other is not optimizer and other.function.module is optimizer.function.module and not _heads(other, new):
            return True
    return any(e.data["name"] == "add_param_group" for e in facts.of("method"))
