"""BN405, BN418, BN419, BN423: forwards in the wrong mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import LIKELY, YES
from batchnorm.diagnosis.source.definitions import FunctionInfo, in_module
from batchnorm.diagnosis.source.facts import Facts, called, file_of, function_of, said
from batchnorm.diagnosis.source.rules.averages import soft_copies
from batchnorm.diagnosis.source.rules.forwards import (
    TEACHER,
    forwards,
    generates,
    infers,
    is_average,
    made_up,
    may_load,
    measures,
    serves,
    teaches,
)
from batchnorm.diagnosis.source.syntax import spelled, words
from batchnorm.diagnosis.source.trace import EVAL, SLOTS, TRAIN, Call, Context, Event, Mode
from batchnorm.diagnosis.source.values import Obj, canonical, owners

SECOND = re.compile(r"ema|teacher|target|momentum|avg|average|key")
AVERAGES = re.compile(
    r"(^|_)ema(_|$)|moving_average|average_(param|weight)|(update|sync|copy)_(teacher|target|key|param)"
)
TARGET = re.compile(r"target|tgt|_t$|slow|delayed|lagged")
REFERENCE = re.compile(r"(global|old|prev\w*|source|src)_?(model|net)$")
EVALUATES = re.compile(
    r"(^|_|\b)(test|tests|val|valid|validate|validation|eval|evaluate|evaluation|dev|query|infer|predict)(_|\d|\b|$)|test(_?(set|data|load))|val(_?(set|data|load))"
)
ENDS = re.compile(r"last|done|stop|final|finish|end$|patience|converged")


def evaluates_in_train(facts: Facts) -> Iterator[Said]:
    """BN405: evaluated, without gradients or without a use for them, in the train mode it was made or trained in."""
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or c.layers is not None or is_average(facts, c.obj) or teaches(event):
            continue
        if "__init__" in (c.function.name, event.function.name) or facts.is_layer(c.obj):
            continue  # to learn the shape of an output
        if facts.uses(event.function, "training") and not in_module(event.function):
            continue  # it asks for the mode
        if c.quiet or _asked(facts, c) or (c.mode.node is None and facts.evaluated(c.obj, called=True)):
            continue
        used = serves(facts, event, c)
        here = c.mode.function is event.function and c.mode.node is not None and not used
        quiet = (c.no_grad is True or used or infers(facts, event, c)) and not here and not facts.trains(event)
        idle = not quiet and unused(facts, event, c)
        if not (quiet or idle) or measures(facts, event, c) or generates(event) or made_up(event):
            continue
        if c.mode.node is None and max(facts.has(c.obj) or 0, facts.has(event.obj) or 0) == 0:
            continue
        known = level == YES and all(o.mode.value == TRAIN for o in event.contexts)
        since = f" (train() in {c.mode.place})" if c.mode.node is not None else ", as a new model is"
        call, function = c.at or (event.node, event.function)
        name = called(event)
        func = call.func if c.at is not None else None
        owner = spelled(func.value) if isinstance(func, ast.Attribute) else name
        yield Said(
            function.module,
            call,
            f"{name} is evaluated in train mode{since}: batch norm normalises with the batch and moves the running "
            "statistics",
            f"{owner}.eval() before, {owner}.train() after",
            sure=known and (_tests(facts, event) or (quiet and not may_load(facts, c))),
        )


def _asked(facts: Facts, c: Context) -> bool:
    """Whether a file that trains nothing puts the model in train mode, which it does for the batch's statistics."""
    puts = facts.set_to(TRAIN, "mode") if c.mode.node is None else ()
    return any(facts.same(e.obj, c.obj) and not facts.steps(e.function.module) for e in puts)


def unused(facts: Facts, event: Event, c: Context) -> bool:
    """Whether a forward over data is for its output alone: no loss of it is run backward, and nothing else takes it."""
    at = c.at if facts.fate(event).leaves else None  # where a method that returns it is called
    function = function_of(event, at)
    loops = [n for n in facts.loops(event, at) if isinstance(n, ast.For | ast.While)]
    known = YES if not EVALUATES.search(function.name) else LIKELY
    if not loops or made_up(event) or (facts.has(c.obj) or 0) < known:
        return False
    fate = facts.fate(event, at)
    if fate.feeds or fate.leaves or fate.asks or (at is not None and facts.trains(event)):
        return False
    return _tests(facts, event, at) or not facts.trains(event, at)


def _tests(facts: Facts, event: Event, at: Call | None = None) -> bool:
    """Whether a function, or a loop around, is named as a test is."""
    function = function_of(event, at)
    over = {w for n in facts.loops(event, at) if isinstance(n, ast.For) for w in words(n.iter)}
    return any(EVALUATES.search(w.lower()) for w in (function.name, *over))


def never_back(facts: Facts) -> Iterator[Said]:
    """BN418: trained in train mode in the first round of a loop, and in eval mode from the second on."""
    yield from _never_trained(facts)
    first: dict[tuple[int, int], set[str]] = {}
    called_first: dict[tuple[int, int | None], set[str]] = {}
    for event, c, _ in forwards(facts):
        if not c.second:
            first.setdefault((id(event.node), id(c.obj)), set()).add(c.mode.value)
            called_first.setdefault((id(event.node), _by(c)), set()).add(c.mode.value)
    for event, c, level in forwards(facts):
        evals = c.mode if c.mode.value == EVAL else c.mode.lapse
        if evals is None or evals.node is None or not c.second or c.no_grad is not False or c.layers is not None:
            continue
        test = c.mode.test if evals is not c.mode else None
        same = facts.aliases(c.obj) if evals is not c.mode else (c.obj,)
        before = set[str]().union(*(first.get((id(event.node), id(o)), ()) for o in same))
        if TRAIN not in called_first.get((id(event.node), _by(c)), (TRAIN,)):
            continue
        if c.obj.kind in SLOTS and c.function is event.function:
            before |= {o.mode.value for o in event.contexts if o.function is not c.function}
        if TRAIN not in before or (test is not None and (_once(test) or not (c.mode.sure and evals.sure))):
            continue  # what was put in eval as one of two models goes back as one
        fate = facts.fate(event)
        if not facts.trains(event) or fate.asks or not (fate.trains or fate.leaves) or not evals.sure:
            continue
        name, by = called(event), evals.function or event.function
        if _apart(by, event.function) or not (test is None or _evaluates(facts, evals)):
            continue
        since = "from the second round on" if test is None else f"once {spelled(test)} has held"
        yield Said(
            by.module,
            evals.node,
            f"this eval() is never followed by train(): {name} in line {event.line} of {file_of(event)} is trained in "
            f"eval mode {since}, and batch norm's statistics stop",
            f"{name}.train() after it, or before every step",
            sure=level == YES,
        )


def _by(c: Context) -> int | None:
    """The call that a situation comes from: one function may run an epoch of training, and of evaluation."""
    return None if c.call is None else id(c.call.node)


def _apart(one: FunctionInfo, other: FunctionInfo) -> bool:
    """Whether two functions are methods of classes that do not inherit from each other."""
    owner, second = one.owner, other.owner
    return owner is not None and second is not None and owner not in second.lineage and second not in owner.lineage


def _evaluates(facts: Facts, evals: Mode) -> bool:
    """Whether an eval() is there for an evaluation."""
    return any(o.mode.node is evals.node and o.mode.value == EVAL for _, o, _ in forwards(facts))


def _never_trained(facts: Facts) -> Iterator[Said]:
    """A new model that its first training step finds in eval, and that nothing puts in train mode."""
    put = {id(o) for e in facts.set_to(TRAIN, "mode") for o in facts.aliases(e.obj)}
    for event, c, level in forwards(facts):
        if c.mode.value != EVAL or c.mode.node is None or c.no_grad is not False or c.layers is not None or c.loaded:
            continue
        if level != YES or c.obj.kind != "instance" or id(c.obj) not in facts.trained or id(c.obj) in put:
            continue
        if any(o.mode.value == TRAIN for o in event.contexts) or not facts.fate(event).trains:
            continue
        if not facts.uses(event.function, "step"):
            continue  # for the gradient of an input
        yield said(
            event,
            f"{called(event)} is new and is trained in eval mode, since eval() in {c.mode.place}: batch norm's "
            "statistics stay 0 and 1",
            f"{called(event)}.train() before every epoch",
        )


def _once(test: ast.expr) -> bool:
    """Whether a condition may hold in the last round alone: `epoch == last`, `if done`."""
    if any(isinstance(n, ast.Mod) for n in ast.walk(test)):
        return False
    equal = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)
    return equal or any(ENDS.search(w.lower()) for w in words(test))


def second_network(facts: Facts) -> Iterator[Said]:
    """BN419: a trained network that teaches another one, in train mode."""
    averages = any(AVERAGES.search(name.lower()) for name in facts.called)
    yield from _put_in_train(facts) if not averages else ()
    yield from _follows_in_train(facts)
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or not facts.trains(event):
            continue
        if is_average(facts, c.obj) or facts.trains_part(c.obj) or c.layers is not None:
            continue
        if any(facts.trains_whole(o) for o in owners(c.obj)) or _trains_too(facts, event):
            continue
        named = teaches(event)
        taught = c.loaded and (c.no_grad is True or named)
        made = any(o.kind in ("instance", "external", "result") for o in facts.aliases(c.obj))
        taught |= named and c.no_grad is True and made
        apart = c.loaded and (facts.knows_trained or any(part is c.obj for part, _ in c.frozen))
        apart = apart and not in_module(event.function) and not averages and facts.trains_beside(event)
        taught |= apart and not facts.measures(event.function)
        if not taught and not (REFERENCE.search(called(event)) and facts.trains_beside(event)):
            continue
        if c.mode.node is not None and c.mode.function is event.function and not apart:
            continue  # train() was called on it on purpose; BN412 speaks of that
        name = called(event)
        yield said(
            event,
            f"{name} is not trained here, and is not in eval: it normalises with the batch, and its running "
            "statistics move",
            f"{name}.eval()",
            sure=level == YES and c.loaded,
        )


def _trains_too(facts: Facts, event: Event) -> bool:
    """Whether a forward without gradients stands beside one of the same network with them: what it trained so far."""
    others = (e for e in facts.forwards_in(event.function) if called(e) == called(event))
    return event.data["no_grad"] is True and any(e.data["no_grad"] is False for e in others)


def _follows_in_train(facts: Facts) -> Iterator[Said]:
    """A target network whose parameters follow those of another, and which normalises with its own batches."""
    copies = {id(o) for owner in soft_copies(facts) for o in facts.aliases(owner)}
    if not copies or any(e.obj is not None and id(canonical(e.obj)) in copies for e in facts.of("mode")):
        return
    for event in facts.of("forward"):
        if event.obj is None or copies.isdisjoint(map(id, facts.aliases(event.obj))) or not facts.trains(event):
            continue
        if event.data["no_grad"] is True and TARGET.search(called(event).lower()):
            yield said(
                event,
                f"{called(event)} follows the parameters of another network and was never put in eval: it normalises "
                "with its own batches, and its running statistics are its own",
                f"{called(event)}.eval(), and copy the buffers with the parameters",
                sure=False,
            )


def _put_in_train(facts: Facts) -> Iterator[Said]:
    """`teacher.train()` in a training step, of a network that no optimizer has and that is no average."""
    if not facts.trained:
        return
    for event in facts.set_to(TRAIN, "mode"):
        func, obj = event.node.func, event.obj
        if obj is None or not facts.trains(event):
            continue
        name = spelled(func.value) if isinstance(func, ast.Attribute) else ""
        if not TEACHER.search(name.lower().rsplit(".", 1)[-1]) or is_average(facts, obj):
            continue
        if facts.likely(obj) and not any(id(o) in facts.trained for o in facts.aliases(obj)):
            yield said(
                event,
                f"{name} is not trained here, and is put in train mode: it normalises with the batch, and its running "
                "statistics move",
                f"{name}.eval()",
                sure=facts.has(obj) == YES and _loaded(facts, event),
            )


def _loaded(facts: Facts, event: Event) -> bool:
    """Whether weights were loaded into what a mode is set for."""
    return any(facts.same(e.obj, event.obj) for e in facts.of("load")) or any(c.loaded for c in event.contexts)


def on_one_rank(facts: Facts) -> Iterator[Said]:
    """BN423: the DistributedDataParallel wrapper runs forward on one rank alone."""
    for event in facts.of("forward"):
        for c in event.contexts:
            if not c.one_rank or c.no_grad is not True:
                continue
            if event.data.get("wrapper") == "ddp" or _wrapped(facts, event):
                level = facts.has(c.obj)
                if level in (YES, LIKELY):
                    name = called(event)
                    yield said(
                        event,
                        f"{name} is DistributedDataParallel and runs on one rank alone: a forward broadcasts the "
                        "running statistics, for which it waits on the other ranks",
                        f"{name}.module(...), or evaluate on every rank",
                        sure=level == YES and c.mode.value == EVAL,
                    )


def _wrapped(facts: Facts, event: Event) -> bool:
    """Whether what flows into the called name is always the wrapper."""
    obj = event.obj
    if obj is None or obj.kind != "parameter" or not obj.sources:
        return False
    return all(isinstance(s, Obj) and s.kind == "wrapper" and s.name == "ddp" for s in obj.sources)
