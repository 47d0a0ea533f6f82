"""BN412: forwards in train mode that no weight is trained by."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.definitions import ClassInfo
from batchnorm.diagnosis.source.facts import Facts, called, said
from batchnorm.diagnosis.source.rules.forwards import (
    for_a_step,
    forwards,
    generates,
    is_average,
    made_up,
    may_load,
    measures,
    teaches,
)
from batchnorm.diagnosis.source.rules.freezing import belongs
from batchnorm.diagnosis.source.rules.modes import SECOND, unused
from batchnorm.diagnosis.source.syntax import spelled
from batchnorm.diagnosis.source.trace import TRAIN, Context, Event
from batchnorm.diagnosis.source.values import Obj, owners

NETWORKS = re.compile(r"encoder|backbone|model|net$|forward")  # what a method that runs one is called
PAUSES = (
    "pause",
    "preserve_stats",
    "bypass_bn",
    "disable_running_stats",
    "disable_tracking_bn_stats",
    "_disable_tracking_bn_stats",
)
SUMMARIES = ("torchsummary.summary", "torchsummaryX.summary", "torchsummary.torchsummary.summary")
NUMBERS = re.compile(r"torch\.(rand|randn|randint|zeros|ones|empty|full)$")
HOOKS = re.compile(r"on_(train_batch|before_zero_grad|before_optimizer|after_backward|before_backward)")


def moves_without_gradients(facts: Facts) -> Iterator[Said]:
    """BN412: a forward in train mode that no weight is trained by, or a summary of a trained model."""
    for event, c, _ in forwards(facts):
        if c.mode.value != TRAIN or c.second or c.layers is not None:
            continue
        if event.function.owner is not None and facts.only_constructs(event.function):
            yield from _probes(facts, event, c)
            continue
        if measures(facts, event, c) or generates(event) or _restored(facts, event) or for_a_step(event, c):
            continue
        if not {"training", "is_training", "train", "is_train"}.isdisjoint(event.function.params):
            continue  # its callers say which mode it is for
        if is_average(facts, c.obj) and not facts.fate(event).asks:
            continue
        here = c.mode.function is event.function and c.mode.node is not None
        what = "runs forward under no_grad in train mode" if c.no_grad is True and here else _aside(facts, event, c)
        if what:
            name = called(event)
            since = f" (train() in {c.mode.place})" if c.mode.node is not None else ""
            attacks = facts.fate(event).asks and not facts.uses(event.function, "step")
            given = c.call if attacks and event.obj is not None and event.obj.kind == "parameter" else None
            subject = name if given is None else f"{spelled(given.node.func)}() is given {name}, which"
            yield Said(
                (given or event).function.module,
                (given or event).node,
                f"{subject} {what}{since}: it moves the running statistics",
                f"with batchnorm.pause({name}): ..., or {name}.eval()",
                sure=False,
            )
    yield from _in_hooks(facts)
    yield from _perturbed(facts)
    for event in facts.of("outside"):
        for c in event.contexts if event.data["name"] in SUMMARIES else ():
            if c.mode.value == TRAIN and facts.has(c.obj) == YES and c.loaded and _looked_at(facts, event, c):
                yield said(
                    event,
                    "a summary runs the model forward in train mode on random numbers: it moves the running "
                    "statistics that were loaded",
                    f"{spelled(event.node.args[0])}.eval() before",
                    sure=False,
                )
                break


def _probes(facts: Facts, event: Event, c: Context) -> Iterator[Said]:
    """A constructor that learns a shape from made-up numbers, and a part of its own."""
    if belongs(facts, event.function.owner, event.obj) and made_up(event) and facts.has(c.obj) == YES:
        yield said(
            event,
            f"{called(event)} runs forward on made-up data in the train mode of a new model: the running statistics "
            "start from these",
            f"{called(event)}.eval() before, {called(event)}.train() after",
            sure=False,
        )


def _looked_at(facts: Facts, event: Event, c: Context) -> bool:
    """Whether a model has weights for certain, or is there for more than a look at its layers."""
    on_data = any(o.obj is c.obj and not made_up(e) for e, o, _ in forwards(facts))
    # Of parts of it too, in its constructor.
    loads = [e.data["conditional"] for e in facts.of("load") if e.function.module is event.function.module]
    return on_data or not (c.obj.kind == "result" or may_load(facts, c) or (loads and all(loads)))


def _aside(facts: Facts, event: Event, c: Context) -> str:
    """What a forward in a training step is for, where that is not a gradient of its weights."""
    others = (e for e in facts.forwards_in(event.function) if e.obj is event.obj and e.node is not event.node)
    beside = any(facts.fate(e).trains for e in others)
    trained = beside or not facts.trained or any(id(o) in facts.trained for o in facts.aliases(c.obj))
    if teaches(event) or SECOND.search(called(event).lower()) or not trained:
        return ""
    fate = facts.fate(event)
    if facts.has(c.obj) != YES:
        return ""
    if fate.asks:
        return "runs forward in train mode for the gradient of its input"
    if not facts.trains(event):
        return ""
    given = [v for v in event.data["inputs"] if isinstance(v, Obj) and v.kind == "external"]
    made = [v.node for v in given if NUMBERS.match(v.info[0])]
    if any(n in made for n in ast.walk(event.node)):
        return "runs forward in train mode on made-up data"
    if unused(facts, event, c):
        return ""
    if c.no_grad is True:
        return "runs forward under no_grad in the train mode of a training step"
    idle = not (fate.trains or fate.leaves) and (fate.feeds or beside)
    return "runs forward in train mode for its values" if idle else ""


def _perturbed(facts: Facts) -> Iterator[Said]:
    """A forward between two writes of the parameters: with weights that are moved for it and put back."""
    writes: dict[int, list[Event]] = defaultdict(list)
    for event in facts.of("write"):
        if event.data["atom"].kind == "parameter":
            writes[id(event.function)].append(event)
    for event, c, level in forwards(facts) if writes else ():
        node, function = c.at or (event.node, event.function)
        if c.mode.value != TRAIN or c.layers is not None or c.no_grad is True or level != YES:
            continue
        near = [w.line for w in writes[id(function)] if _part_of(facts, w.data["atom"].owner, c.obj)]
        if near and min(near) < node.lineno < max(near):
            yield Said(
                function.module,
                node,
                f"{called(event) if c.at is None else spelled(node.func)} runs forward in train mode with weights that "
                f"line {min(near)} moves and line {max(near)} puts back: the running statistics follow them",
                "batchnorm.pause(model) around it",
                sure=False,
            )


def _part_of(facts: Facts, part: Any, obj: Obj) -> bool:
    """Whether an object may be another one, or an attribute of its class."""
    *_, top = owners(part)
    inside = top.kind == "self" and isinstance(top.info, ClassInfo) and top.info.is_module
    return facts.holds(obj, top.info) if inside else facts.same(part, obj)


def _in_hooks(facts: Facts) -> Iterator[Said]:
    """A trainer's hooks of a training step: what they run forward is in train mode."""
    for event in facts.of("forward", "method"):
        obj = event.obj
        if event.kind == "method" and not NETWORKS.search(event.data["name"]):
            continue
        if not HOOKS.match(event.function.name) or event.data["no_grad"] is not True or obj is None:
            continue
        top = obj.parent if obj.kind == "attribute" and obj.parent is not None else obj
        if top.kind != "parameter" or top.name not in ("pl_module", "module", "model") or event.contexts:
            continue
        if facts.likely(obj) and not facts.uses(event.function, "eval"):
            yield said(
                event,
                f"{called(event)} runs forward under no_grad in the train mode of the step that {event.function.name} "
                "belongs to: it moves the running statistics",
                f"{top.name}.eval() before, {top.name}.train() after",
                sure=False,
            )


def _restored(facts: Facts, event: Event) -> bool:
    """The statistics are saved before and put back."""
    loads = (e for e in facts.of("load") if e.function is event.function and e.line > event.line)
    return facts.uses(event.function, *PAUSES) or any(e.data["loops"] == event.data["loops"] for e in loads)
