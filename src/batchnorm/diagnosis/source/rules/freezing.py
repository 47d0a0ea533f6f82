"""BN406: layers frozen by what stops their weights alone: requires_grad = False, or no_grad around their forward."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.conditions import exclusive
from batchnorm.diagnosis.source.contents import LIKELY, YES
from batchnorm.diagnosis.source.definitions import ClassInfo
from batchnorm.diagnosis.source.facts import Facts, adapts, file_of, said
from batchnorm.diagnosis.source.parameters import function_at
from batchnorm.diagnosis.source.rules.chosen import for_a_block, lasts_for_steps, reaches, trains_apart
from batchnorm.diagnosis.source.rules.forwards import FORWARDS, is_average, teaches, training_forwards
from batchnorm.diagnosis.source.syntax import spelled, strings
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Call, Event, Test
from batchnorm.diagnosis.source.values import Const, Obj, canonical, options, within

FREEZE = "batchnorm.freeze({})"
HEADS = ("fc", "classifier", "head", "last_linear", "_fc", "fc2", "logits")
HELPERS = re.compile(r"fix|freez|frozen|lock|grad|trainable", re.IGNORECASE)  # functions that are there to freeze
MADE = ("instance", "result")  # kinds of models that a program makes itself
SWITCHES = ("freeze_bn", "train_bn", "bn_train", "freeze_batch_norm", "fix_bn")  # options of whether statistics move
AFFINE = ("bn", "norm", "batchnorm", "bias", "weight")


def stops_weights_only(facts: Facts) -> Iterator[Said]:
    """BN406: frozen, and then a forward in train mode."""
    thawed = [e.obj for e in facts.of("thaw") if e.obj is not None]
    yield from _of_a_module(facts)
    yield from _in_a_training_step(facts, thawed)
    yield from _by_class(facts)
    yield from _where_it_is_made(facts, thawed)
    yield from _without_gradients(facts)
    yield from _by_learning_rate(facts)


def _said(
    event: Event,
    part: str,
    where: str,
    sure: bool = True,
    how: str = "requires_grad = False",
    call: Call | None = None,
) -> Said:
    loop = event.data.get("loop")
    over = loop.iter.func if isinstance(loop, ast.For) and isinstance(loop.iter, ast.Call) else None
    part = spelled(over.value) if isinstance(over, ast.Attribute) and call is None else part
    part = spelled(call.node.args[0]) if call is not None and call.node.args else part
    return Said(
        event.function.module if call is None else call.function.module,
        event.node if call is None else call.node,
        f"{how} stops weights, not the running statistics of {part}: they move in every forward in train mode{where}",
        FREEZE.format(part),
        sure=sure,
    )


def _of_a_module(facts: Facts) -> Iterator[Said]:
    """`model.encoder.requires_grad = False`, which sets an attribute of a module."""
    for event in facts.of("attribute"):
        off = event.data["name"] == "requires_grad" and event.data["value"] == Const(False)
        if off and facts.has(event.obj) == YES and not _is_element(event.obj):
            name = spelled(event.node.targets[0].value)
            yield said(
                event,
                f"requires_grad = False on the module {name} sets an attribute, and freezes nothing: weights and "
                "running statistics move in every training step",
                f"{name}.requires_grad_(False) and {FREEZE.format(name)}",
            )


def _is_element(obj: Obj | None) -> bool:
    """Whether an object is an element of something, which may be a tensor."""
    return obj is None or obj.name[:1] == "["


def _in_a_training_step(facts: Facts, thawed: list[Obj]) -> Iterator[Said]:
    """A part of what a training step runs forward."""
    events = {id(e.node): e for e in facts.of("freeze")}
    partial = {id(e.node) for e in facts.of("freeze") if e.data.get("partial")}
    for event, c, _ in training_forwards(facts):
        for part, freeze in c.frozen:
            node = freeze.node
            level = facts.has(part) if part.kind != "batch norm" else YES
            frozen = events.get(id(node))
            if frozen is None or level not in (YES, LIKELY) or is_average(facts, part) or _asked_for(facts, part):
                continue
            if any(map(_no_rate, freeze.tests)) or _stopped(facts, frozen):
                continue
            ends = any(_inside(facts, part, o) for o in thawed)
            if for_a_block(freeze) or (ends and not lasts_for_steps(facts, frozen, freeze, event)):
                continue
            evals = (e.obj for e in facts.set_to(EVAL, "mode") if e.function is freeze.function)
            if any(part is o and o is not c.obj for o in evals):
                continue  # BN408 speaks of it
            if part is c.obj and id(node) not in partial and not _partly(facts, part, thawed):
                continue
            reached = reaches(facts, frozen, part, freeze.tests)
            if not _selects(frozen) and reached and not trains_apart(facts, freeze.tests, event, c):
                sure = level == reached == YES and not (c.conditional or ends)
                if ends and not level == reached == YES:
                    continue
                where = f" (line {event.line} of {file_of(event)})"
                call = freeze.call if HELPERS.search(freeze.function.name) else None
                how = "requires_grad = False" + (f" in line {frozen.line} of {file_of(frozen)}" if call else "")
                yield _said(frozen, part.path, where, sure, how, call)


def _no_rate(test: Test) -> bool:
    """Whether a condition is `else` of `if rate > 0`, which holds unless somebody asks for 0."""
    compared = test.node if isinstance(test.node, ast.Compare) and isinstance(test.node.ops[0], ast.Gt) else None
    number = compared.comparators[0] if compared is not None else None
    return not test.holds and isinstance(number, ast.Constant) and number.value == 0


def _by_class(facts: Facts) -> Iterator[Said]:
    """`isinstance(m, BatchNorm2d)` and then requires_grad = False, where the file never puts such layers in eval."""
    for event in facts.of("freeze"):
        module = event.function.module
        if not event.data["layer"] or event.data["flag"] is not None:
            continue
        if any(e.function.module is module for e in facts.set_to(EVAL, "layer mode")):
            continue
        if facts.uses(module, "track_running_stats", "FrozenBatchNorm2d", *SWITCHES):
            continue
        if any(e.function.module is module for e in facts.set_to(TRAIN, "mode")):
            yield _said(event, "model", "", _reached(facts, event, event.obj) == YES)


def _where_it_is_made(facts: Facts, thawed: list[Obj]) -> Iterator[Said]:
    """A part of a model frozen where the model is made, of a model that a trainer or a caller puts into train mode."""
    lightning = any(e.function.name == "training_step" for e in facts.of("forward", "outside", "method"))
    for event in facts.of("freeze"):
        part, owner = event.obj, event.function.owner
        if part is None or event.data["layer"] or event.data["flag"] is not None or facts.has(part) != YES:
            continue
        if any(o is part for o in thawed):
            continue
        if facts.uses(event.function, "eval", "no_grad") or part.kind == "self" or is_average(facts, part):
            continue
        if _scale_alone(event) or _asked_for(facts, part):
            continue
        reached = _reached(facts, event, part)
        if _selects(event) or not reached:
            continue
        inside = owner if owner is not None and owner.is_module and belongs(facts, owner, part) else None
        if inside is not None:
            if not _lasts(facts, inside, part):
                continue
        elif not (_partly(facts, part, thawed) and event.function.name):
            continue
        put = (e for e in facts.set_to(TRAIN, "mode") if _may_be(facts, e.obj, inside, part))
        trains = any(not exclusive(event.data["tests"], e.data["tests"]) for e in put)
        if inside is not None and not trains:
            trains = any(c.obj.kind in MADE and facts.holds(c.obj, inside) for _, c, _ in training_forwards(facts))
        layers = _trains_layers(facts, inside) if inside is not None and facts.is_layer(part) else 0
        if lightning or trains or layers:
            sure = reached == YES and (lightning or trains or layers == YES)
            sure &= not (_at_times(facts, part) or any(facts.same(o, part) for o in thawed))
            yield _said(event, part.path, "", sure)


def _asked_for(facts: Facts, part: Obj) -> bool:
    """Whether an option says that statistics move, where the weights alone of a batch norm layer are frozen."""
    return facts.is_layer(part) and any(facts.uses(m, *SWITCHES) for m in facts.modules)


def _at_times(facts: Facts, part: Obj) -> bool:
    """Whether a part runs forward under conditions alone, as what only training uses."""
    own = [
        e.data["conditional"] for e in facts.of("forward") if e.function.name in FORWARDS and facts.same(e.obj, part)
    ]
    return bool(own) and all(own)


def _stopped(facts: Facts, event: Event) -> bool:
    """Whether a function that freezes weights sets momentum 0 too."""
    found = (e for e in facts.of("attribute") if e.data["name"] == "momentum" and e.function is event.function)
    return any(isinstance(e.data["value"], Const) and not e.data["value"].value for e in found)


def _scale_alone(event: Event) -> bool:
    """Whether a layer's weight is fixed and its bias is not, as at the end of a network for faces."""
    scale = isinstance(event.node, ast.Assign) and spelled(event.node.targets[0]).endswith(".weight.requires_grad")
    return scale and "bias.requires_grad" not in event.function.module.text


def _reached(facts: Facts, event: Event, part: Obj | None) -> int:
    return reaches(facts, event, part, event.data["tests"]) if part is not None else YES


def belongs(facts: Facts, owner: ClassInfo | None, part: Obj | None) -> bool:
    """Whether a part is in an attribute of its owner, read through it or assigned to it."""
    if owner is None or part is None:
        return False
    if part.kind == "attribute":
        return part.parent is owner.self_obj
    return any(e.obj is owner.self_obj and part in options(e.data["value"]) for e in facts.of("attribute"))


def _unset(facts: Facts, owner: ClassInfo, part: Obj) -> bool:
    """Whether nothing in the program sees to the mode of a model's part."""
    put = any(e.obj is not None and within(e.obj, part) for e in facts.of("mode", "layer mode"))
    put |= any(facts.same(e.obj, part) for e in facts.set_to(EVAL, "mode"))
    return not put and owner.method("train") is None


def _lasts(facts: Facts, owner: ClassInfo, part: Obj) -> bool:
    """Whether nothing in the program sees to the mode of a model's frozen part, or runs it without gradients."""
    quiet = (e.obj for e in facts.of("forward") if e.obj is not None and e.data["no_grad"] is True)
    return _unset(facts, owner, part) and not any(within(o, part) for o in quiet)


def _trains_layers(facts: Facts, owner: ClassInfo) -> int:
    """Whether models train in train mode, and no layers are put in eval by their class; YES for models of one file."""
    if any(facts.set_to(EVAL, "layer mode")):
        return 0
    trained = [a for _, c, _ in training_forwards(facts) if facts.has(c.obj) == YES for a in facts.aliases(c.obj)]
    made = [i for a in trained for i in (a, *a.sources[:3]) if isinstance(i, Obj) and isinstance(i.info, ClassInfo)]
    on_purpose = any(map(adapts, facts.classes))
    same = any(i.info.module is owner.module for i in made)
    return YES if same and not on_purpose else LIKELY if trained else 0


def _without_gradients(facts: Facts) -> Iterator[Said]:
    """A pretrained part that its owner runs forward under no_grad, of an owner that trains."""
    running = [c.obj for _, c, _ in training_forwards(facts)]
    loaded = [e.obj for e in facts.of("load")]
    for event in facts.of("forward"):
        owner, part = event.function.owner, event.obj
        if (
            part is None
            or owner is None
            or not owner.is_module
            or event.function.name not in (*FORWARDS, "training_step")
        ):
            continue
        if event.data["no_grad"] is not True or event.data["conditional"] or part.parent is not owner.self_obj:
            continue
        level = facts.has(part)
        if level not in (YES, LIKELY) or is_average(facts, part) or teaches(event) or not _unset(facts, owner, part):
            continue
        if not facts.pretrained(part) and not any(facts.holds(obj, owner) for obj in loaded):
            continue
        lightning = owner.method("training_step") is not None
        if lightning or any(_may_be(facts, obj, owner, part) for obj in running):
            yield _said(event, part.path, "", level == YES, how="no_grad")


def _by_learning_rate(facts: Facts) -> Iterator[Said]:
    """Parameter groups with a learning rate of 0, of models that train in train mode."""
    layers = any(facts.may_run(e.function) for e in facts.set_to(EVAL, "layer mode"))
    if layers or not training_forwards(facts):
        return
    for module in facts.modules:
        for group in module.nodes if "params" in module.text and facts.speaks_near(module) else ():
            keys = map(ast.unparse, filter(None, group.keys)) if isinstance(group, ast.Dict) else ()
            given = dict(zip(keys, getattr(group, "values", ()), strict=False))
            rate = given.get("'lr'")
            if "'params'" not in given or not isinstance(rate, ast.Constant) or rate.value != 0:
                continue
            if facts.may_run(function_at(module, group)):
                yield Said(
                    module,
                    group,
                    "a learning rate of 0 stops weights, not the running statistics: they move in every forward in "
                    "train mode",
                    FREEZE.format("part"),
                    sure=False,
                )


def _may_be(facts: Facts, obj: Obj | None, owner: ClassInfo | None, part: Obj) -> bool:
    """Whether what trains may be, or may hold, the owner of the frozen part."""
    if owner is not None and facts.holds(obj, owner):
        return True
    return any(part in (alias, *alias.sources[:3]) for alias in facts.aliases(obj))


def _selects(event: Event) -> bool:
    """Whether a loop freezes what a test on names lets through: affine parameters, weights, adapters."""
    return any(word.lower() in AFFINE for t in event.data["tests"] for word in strings(t.node))


def _partly(facts: Facts, obj: Obj, thawed: list[Obj]) -> bool:
    """Whether a part of a frozen model is trained: a new head, or parameters that were thawed."""
    if any(o is not obj and _inside(facts, o, obj) for o in thawed):
        return True
    same = {id(o) for o in facts.aliases(obj)}
    return any(e.data["name"] in HEADS and id(canonical(e.obj)) in same for e in facts.of("attribute"))


def _inside(facts: Facts, part: Obj, whole: Obj) -> bool:
    """Whether an object is another one, or a part of it, by its path or by what its class holds."""
    if within(part, whole) or (part.path == whole.path and part.kind == whole.kind):
        return True
    made = [a.info for a in facts.aliases(whole) for a in (a, *a.sources[:3]) if isinstance(a, Obj)]
    return any(belongs(facts, c, part) for c in made if isinstance(c, ClassInfo))
