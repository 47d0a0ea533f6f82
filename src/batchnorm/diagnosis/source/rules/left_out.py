"""BN430: a pretrained model of which the optimizer has one part, trained in train mode."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, file_of, said
from batchnorm.diagnosis.source.rules.chosen import asks_of, norms
from batchnorm.diagnosis.source.rules.forwards import forwards, training_forwards
from batchnorm.diagnosis.source.rules.freezing import AFFINE
from batchnorm.diagnosis.source.syntax import name_of, spelled, strings, variables
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Event, Test
from batchnorm.diagnosis.source.values import Obj, canonical, options

HEADS = ("fc", "classifier", "head", "last_linear", "_fc", "fc2", "logits", "last_layer", "output")


def left_out(facts: Facts) -> Iterator[Said]:
    """BN430: `Adam(model.fc.parameters())`: the rest is fixed, and its running statistics move."""
    yield from _passed_over(facts)
    new = {
        id(o): canonical(e.obj)
        for e in facts.of("attribute")
        if e.data["name"] in HEADS
        for o in options(e.data["value"])
    }
    parts = [(e, p) for e in facts.optimizers for p in (*_heads(e, new), *_named(facts, e))]
    frozen = {o for e in facts.of("freeze") for o in facts.aliases(e.obj)}
    seen: set[int] = set()
    for event, c, _ in forwards(facts) if parts else ():
        if c.mode.value not in (TRAIN, SWITCHED) or c.no_grad is True or not facts.trains(event) or not c.loaded:
            continue
        if facts.has(c.obj) != YES or c.layers is not None:
            continue
        if not frozen.isdisjoint(facts.aliases(c.obj)):
            continue  # BN406 speaks of it
        for optimizer, owner in parts:
            made = owner.kind == "self" and any(o.info is owner.info for o in facts.aliases(c.obj))
            if id(optimizer.node) in seen or not (made or facts.same(owner, c.obj)):
                continue
            if _others(facts, optimizer, new):
                continue
            seen.add(id(optimizer.node))
            text = spelled(optimizer.node.args[0]) if optimizer.node.args else ""
            yield said(
                optimizer,
                f"only {text} is trained, but every forward in train mode (line {event.line} of {file_of(event)}) "
                f"normalises with the batch and moves the running statistics of all of {called(event)}",
                f"batchnorm.freeze({called(event)})",
            )


def _heads(optimizer: Event, new: dict[int, Any]) -> list[Obj]:
    """The models of which an optimizer was given the head's parameters alone; `new`: heads that were put in."""
    found = []
    for option in _groups(optimizer):
        owner = option.info[0] if isinstance(option, Obj) and option.kind == "iteration" else None
        if isinstance(owner, Obj) and id(owner) in new:
            found.append(new[id(owner)])
        elif isinstance(owner, Obj) and owner.kind == "attribute" and owner.name in HEADS and owner.parent is not None:
            found.append(canonical(owner.parent))
        else:
            return []
    return found


def _named(facts: Facts, optimizer: Event) -> list[Obj]:
    """The models of which an optimizer was given the parameters whose names have a word, and no list has the rest."""
    value = optimizer.data["args"][0] if optimizer.data["args"] else optimizer.data["keywords"].get("params")
    lists = [o for o in options(value) if isinstance(o, Obj) and o.kind == "list"]
    found = []
    for owner in {id(e.obj): e.obj for e in facts.of("collect") if e.data["into"] in lists}.values():
        each = [e for e in facts.of("collect") if e.obj is owner]
        asked = [[t for t in e.data["tests"] if _words(t) and asks_of(e, t)] for e in each]
        otherwise = {(id(t.node), t.holds) for tests in asked for t in tests}
        if all(asked) and not any((node, not holds) in otherwise for node, holds in otherwise):
            found.append(canonical(owner))
    return found


def _passed_over(facts: Facts) -> Iterator[Said]:
    """Parameters that a loop over names puts into none of the optimizer's lists: `if "stem.bn1" in name: pass`."""
    loops: dict[int, list[Event]] = defaultdict(list)
    for event in facts.of("collect"):
        if event.data["loops"] and isinstance(event.data["loops"][-1], ast.For):
            loops[id(event.obj)].append(event)
    given = [id(o) for e in facts.optimizers for o in _given(e)] if loops else []
    for events in loops.values():
        owner, loop = events[0].obj, events[0].data["loops"][-1]
        if any(e.data["loops"][-1] is not loop or id(e.data["into"]) not in given for e in events):
            continue
        for branch in (n for n in ast.walk(loop) if isinstance(n, ast.If) and strings(n.test)):
            taken = {name_of(n) for statement in branch.body for n in ast.walk(statement)}
            trained = (e for e, c, _ in training_forwards(facts) if c.loaded and facts.same(c.obj, owner))
            idle = branch.orelse and taken <= {"", "print", *variables(loop.target)} and norms(strings(branch.test))
            forward = next(trained, None) if idle else None
            if forward is not None:
                yield Said(
                    events[0].function.module,
                    branch,
                    f"parameters with {spelled(branch.test)} are in none of the optimizer's lists: they are fixed, but "
                    f"the running statistics move in every forward in train mode (line {forward.line} of "
                    f"{file_of(forward)})",
                    f"batchnorm.freeze({called(forward)})",
                    sure=False,
                )


def _groups(optimizer: Event) -> Iterator[Any]:
    """What an optimizer was given, of groups their parameters."""
    value = optimizer.data["args"][0] if optimizer.data["args"] else optimizer.data["keywords"].get("params")
    for option in options(value):
        of_dicts = isinstance(option, Obj) and option.kind == "list" and option.sources
        dicts = [o for o in option.sources if isinstance(o, Obj) and o.kind == "dict"] if of_dicts else []
        if dicts and len(dicts) == len(option.sources):
            yield from (p for group in dicts for p in group.attr("[params]").sources)
        else:
            yield option


def _given(optimizer: Event) -> Iterator[Any]:
    """The lists that an optimizer was given, in dicts too."""
    stack = [*optimizer.data["args"][:1], *filter(None, [optimizer.data["keywords"].get("params")])]
    for _ in range(32):
        for option in options(stack.pop()) if stack else ():
            if isinstance(option, Obj) and option.kind in ("list", "dict"):
                yield option
                stack.extend(option.sources)


def _words(test: Test) -> list[str]:
    """The words of names that a test asks for; none where it is about weights, biases and norms."""
    words = strings(test.node)
    return [] if any(a in w.lower() for w in words for a in AFFINE) else words


def _others(facts: Facts, optimizer: Event, new: dict[int, Any]) -> bool:
    """Whether another optimizer of the file has, or may have, the rest."""
    others = [e for e in facts.optimizers if e is not optimizer and e.function.module is optimizer.function.module]
    if any(not (_heads(other, new) or _named(facts, other)) for other in others):
        return True
    return any(e.data["name"] == "add_param_group" for e in facts.of("method"))
