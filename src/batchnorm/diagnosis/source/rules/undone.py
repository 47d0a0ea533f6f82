"""BN408, BN431: layers put in eval by what train() undoes, or by what nothing calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import NO, YES
from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo, in_module
from batchnorm.diagnosis.source.facts import Facts, file_of, said
from batchnorm.diagnosis.source.rules.forwards import forwards, training_forwards
from batchnorm.diagnosis.source.rules.freezing import FREEZE, belongs
from batchnorm.diagnosis.source.syntax import calls_by_name, name_of, of_self, spelled, words
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Event, Mode
from batchnorm.diagnosis.source.values import Obj, canonical, options

FREEZES = re.compile(r"fix|freez|frozen|eval|no_?train|lock", re.IGNORECASE)
BY_OTHERS = re.compile(r"freez|fix_?bn|bn_?eval|eval_?bn")
FREEZERS = (
    "FrozenBatchNorm2d",
    "track_running_stats",
    "freeze_batch_norm_2d",
    "set_bn_eval",
    "frozen_bn",
    "no_grad_bn",
)
OPTIONS = re.compile(r"^(fix|freeze|frozen)_?(bn|batch_?norm)|(bn|batch_?norm)_?(fix|freeze|frozen|eval)|norm_eval")


def eval_before_train(facts: Facts) -> Iterator[Said]:
    """BN408: layers put in eval, then train() on the model, then a forward."""
    undone = {id(e.node): e for e in facts.of("unfreeze")}
    for _event, c, _level in forwards(facts, managed=True):
        if c.layers is not None and c.layers.value == TRAIN and c.no_grad is not True and id(c.layers.node) in undone:
            yield from _undone(undone[id(c.layers.node)])
    for event in facts.of("unfreeze"):
        frozen = event.data["frozen"]
        if frozen.function is not event.function or event.obj is None or _again(facts, event):
            continue
        if facts.trains(event) or event.data["loops"] or event.function.name == "train":
            yield from _undone(event)
    yield from _part_trains_again(facts)
    yield from _in_a_constructor(facts)


def _in_a_constructor(facts: Facts) -> Iterator[Said]:
    """BN408: layers, or a part, put in eval by a constructor alone, of a model that is put into train mode later."""
    trained = [e for e in facts.set_to(TRAIN, "mode") if e.obj is not None]
    lightning = any(c.method("training_step") is not None for c in facts.classes)
    for event in facts.set_to(EVAL, "layer mode", "mode"):
        function, owner, obj = _maker(facts, event), event.function.owner, event.obj
        if function is not None and function.owner is not None:
            owner, obj = function.owner, next((a for a in facts.aliases(obj) if belongs(facts, function.owner, a)), obj)
        if owner is None or not owner.is_module or owner.method("train") is not None:
            continue
        whole = event.kind == "layer mode" and obj is owner.self_obj
        part = obj is not None and not whole and _belongs(facts, owner, obj) and facts.has(obj) == YES
        if not (whole or part) or not _made_only(facts, event.function, event.obj):
            continue
        known = [e for e in trained if facts.holds(e.obj, owner)]
        if part and not known and any(a.kind == "copy" for a in facts.aliases(obj)):
            continue  # an average, or a target: what is copied is put into train mode
        others = [e for e in trained if facts.has(e.obj) != NO and _made(e.obj)]
        trains = lightning or (facts.steps_anywhere and (known or others))
        if not trains or (owner.name not in facts.mentioned and owner.method("training_step") is None):
            continue
        undo = (known or others or [None])[0]
        where = f" in line {undo.line} of {file_of(undo)}" if undo is not None else " of the trainer"
        yield said(
            event,
            f"{spelled(event.node)}, which only the constructor calls, does not last: train(){where} puts it back in "
            "train mode with the rest",
            "def train(self, mode=True) that puts it in eval again, or " + FREEZE.format("model"),
            sure=bool(known) or (whole and bool(others)),
        )


def _maker(facts: Facts, event: Event) -> FunctionInfo | None:
    """The constructor that alone calls a helper which puts layers in eval."""
    helper = event.function
    if helper.owner is not None or not helper.name:
        return None
    near = (f for m in facts.modules if helper.name in m.text for f in m.functions if f.name == "__init__" and f.owner)
    inits = (f for f in near if facts.uses(f, helper.name))
    return next((f for f in inits if any(calls_by_name(n, helper.name) for n in ast.walk(f.node))), None)


def _belongs(facts: Facts, owner: ClassInfo, part: Obj) -> bool:
    """Whether an object is in an attribute of its owner, or in a part of one."""
    if belongs(facts, owner, part):
        return True
    if part.kind == "attribute" and part.parent is not None:
        return _belongs(facts, owner, canonical(part.parent))
    holders = [e.obj.info for e in facts.of("attribute") if e.obj is not None and part in options(e.data["value"])]
    return any(isinstance(c, ClassInfo) and c is not owner and facts.holds(owner.self_obj, c) for c in holders)


def _made(obj: Obj | None) -> bool:
    """Whether anything is known to reach an object, if it is a parameter."""
    return obj is not None and (obj.kind != "parameter" or bool(obj.sources))


def _made_only(facts: Facts, function: FunctionInfo, obj: Obj | None) -> bool:
    """Whether only constructors run a function, and nothing else puts the same object, or layers, in eval."""
    evals = (e for e in facts.set_to(EVAL, "layer mode", "mode") if e.function.name != "__init__")
    elsewhere = any(e.function is not function and facts.same(e.obj, obj) for e in evals)
    return not elsewhere and facts.only_constructs(function)


def _undone(event: Event) -> Iterator[Said]:
    frozen: Mode = event.data["frozen"]
    if frozen.node is not None and frozen.function is not None:
        yield Said(
            frozen.function.module,
            frozen.node,
            f"batch norm layers are put in eval, and {spelled(event.node)} in line {event.line} of "
            f"{event.data['by'].module.file} undoes it",
            FREEZE.format("model") + ", which survives train()",
        )


def _again(facts: Facts, event: Event) -> bool:
    """Whether the layers are put in eval again after a train()."""
    here = [e for e in facts.set_to(EVAL, "layer mode") if e.function is event.function and e.line > event.line]
    return any(e.obj is event.obj or e.node is event.data["frozen"].node for e in here)


def _part_trains_again(facts: Facts) -> Iterator[Said]:
    """BN408: a part put in eval once, where its owner is made or where its weights are frozen, then train()."""
    trained = [c.obj for e, c, _ in forwards(facts, managed=True) if c.mode.value == TRAIN and facts.trains(e)]
    for event in facts.of("part trains again"):
        frozen, part = event.data["frozen"], event.obj
        if part is None or facts.has(part) != YES:
            continue
        again = [e for e in facts.set_to(EVAL, "mode") if e.node is not frozen.node]
        if any(facts.same(e.obj, part) and e.function.name != "__init__" for e in again):
            continue
        if any(facts.same(o, event.data["of"]) for o in trained):
            yield Said(
                frozen.function.module,
                frozen.node,
                f"{spelled(frozen.node)} does not last: train() in line {event.line} of "
                f"{event.data['by'].module.file} puts this part back in train mode with the rest",
                FREEZE.format(spelled(frozen.node.func.value)) + ", which survives train()",
            )


def never_applied(facts: Facts) -> Iterator[Said]:
    """BN431: a helper that puts layers in eval and is never called, or an option for it that nothing reads."""
    if not training_forwards(facts, managed=True):
        return
    for event in facts.set_to(EVAL, "layer mode"):
        function = event.function
        if not FREEZES.search(function.name) or function.node is None:
            continue
        hidden = _hidden_by(function)
        if hidden is None and (function.name in facts.mentioned or function in facts.reached):
            continue
        why = "is never called" if hidden is None else f"is hidden by the attribute of line {hidden.lineno}"
        yield Said(
            function.module,
            function.node if hidden is None else hidden,
            f"{function.name}(), which puts batch norm layers in eval, {why}: they are trained, and their statistics "
            "move",
            FREEZE.format("model"),
            sure=hidden is not None,
        )
    yield from _never_read(facts)


def _hidden_by(function: FunctionInfo) -> ast.Assign | None:
    """The assignment of the constructor that puts an attribute of its own in a method's place."""
    init = function.owner.methods.get("__init__") if function.owner is not None else None
    for node in ast.walk(init.node) if init is not None else ():
        if isinstance(node, ast.Assign) and any(of_self(t) and name_of(t) == function.name for t in node.targets):
            return node
    return None


def _never_read(facts: Facts) -> Iterator[Said]:
    """Options of a command line that promise to freeze batch norm, and no line does it."""
    for module, call, name in facts.options:
        if not OPTIONS.search(name) or facts.spreads:
            continue
        read = name in facts.mentioned
        if any(name in words(t.node) for e in facts.set_to(EVAL, "mode") for t in e.data["tests"]):
            continue
        if not read or not _freezes(facts):
            yield Said(
                module,
                call,
                f"{name} is an option of the command line, and "
                + ("no line that runs puts batch norm in eval for it" if read else "nothing reads it")
                + ": its statistics move as without it",
                "if args." + name + ": " + FREEZE.format("model"),
                sure=not read or any(_hidden_by(e.function) for e in facts.of("layer mode")),
            )


def _freezes(facts: Facts) -> bool:
    """Whether some line of the files that are in use stops batch norm's statistics, or calls what may do so."""
    used = {m for module in facts.modules for m in module.imported}
    used |= {e.function.module for e, _, _ in training_forwards(facts, managed=True)}
    for event in facts.set_to(EVAL, "layer mode", "mode"):
        function = event.function
        layers = event.kind == "layer mode" or in_module(function) or facts.is_layer(event.obj)
        alive = not function.name or (function.name in facts.called and _hidden_by(function) is None)
        if layers and function.module in used and alive:
            return True
    defined = {i.name for m in facts.modules for i in (*m.functions, *m.classes)}
    others = any(BY_OTHERS.search(name) for name in facts.called - defined)
    return others or not facts.mentioned.isdisjoint(FREEZERS)
