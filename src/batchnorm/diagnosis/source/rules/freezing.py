"""BN406, BN408, BN411, BN415: layers frozen by what does not freeze them, or told by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said, spelled
from batchnorm.diagnosis.source.project import ClassInfo
from batchnorm.diagnosis.source.rules.modes import forwards, is_average
from batchnorm.diagnosis.source.trace import EVAL, SWITCHED, TRAIN
from batchnorm.diagnosis.source.values import Const, Obj, canonical, within

FREEZE = "batchnorm.freeze({})"


def by_requires_grad(facts: Facts) -> Iterator[Said]:
    """BN406: requires_grad = False on layers that then run forward in train mode."""
    thawed = [e.obj for e in facts.of("thaw") if e.obj is not None]
    partial = {id(e.node) for e in facts.of("freeze") if e.data.get("partial")}
    about_norms = {id(e.node) for e in facts.of("freeze") if _selects(e.node, e.data["tests"])}
    seen: set[int] = set()
    for event, c, _ in forwards(facts):
        if c.mode.value not in (TRAIN, SWITCHED) or c.no_grad is True or not facts.trains(event):
            continue
        for part, node, function in c.frozen:
            level = facts.has(part) if part.kind != "batch norm" else YES
            if id(node) in seen or level not in (YES, LIKELY) or is_average(facts, part):
                continue
            if any(o is part or (o.path == part.path and o.kind == part.kind) for o in thawed):
                continue
            if part is c.obj and id(node) not in partial and not _partly(facts, part, thawed):
                continue
            if id(node) in about_norms:
                continue
            seen.add(id(node))
            yield Said(
                function.module,
                node,
                f"requires_grad = False stops weights, not the running statistics of {part.path}: they move in every "
                "forward in train mode "
                f"(line {event.line} of {event.function.module.path.rsplit('/', 1)[-1]})",
                FREEZE.format(part.path),
                sure=level == YES and not c.conditional,
            )
    yield from _by_class(facts, seen)
    yield from _by_part(facts, seen, thawed)


def _by_class(facts: Facts, seen: set[int]) -> Iterator[Said]:
    """`isinstance(m, BatchNorm2d)` and then requires_grad = False, where the file never puts such layers in eval."""
    for event in facts.of("freeze"):
        module = event.function.module
        if not event.data["layer"] or id(event.node) in seen:
            continue
        if any(e.data["mode"] == EVAL and e.function.module is module for e in facts.of("layer mode")):
            continue
        if facts.uses(module, "track_running_stats", "FrozenBatchNorm2d", "freeze_bn", "freeze_batch_norm"):
            continue
        trains = any(e.data["mode"] == TRAIN and e.function.module is module for e in facts.of("mode"))
        if trains:
            seen.add(id(event.node))
            yield Said(
                module,
                event.node,
                "requires_grad = False stops a layer's weight and bias, not its running statistics: they move in "
                "every forward in train mode",
                FREEZE.format("model"),
            )


def _by_part(facts: Facts, seen: set[int], thawed: list[Obj]) -> Iterator[Said]:
    """A part of a model frozen where the model is made, of a model that a trainer or a caller puts into train mode."""
    lightning = any(e.function.name == "training_step" for e in facts.of("forward", "outside", "method"))
    for event in facts.of("freeze"):
        part, owner = event.obj, event.function.owner
        if part is None or id(event.node) in seen or event.data["layer"] or any(o is part for o in thawed):
            continue
        level = facts.has(part)
        if (
            level != YES
            or facts.uses(event.function, "eval", "no_grad")
            or part.kind == "self"
            or is_average(facts, part)
        ):
            continue
        if _selects(event.node, event.data["tests"]):
            continue
        inside = owner is not None and owner.is_module and part.kind == "attribute" and part.parent is owner.self_obj
        if inside:
            assert owner is not None
            if owner.method("train") is not None or any(
                e.obj is not None and within(e.obj, part) for e in facts.of("mode", "layer mode")
            ):
                continue
            if any(
                e.obj is not None and within(e.obj, part) and e.data["no_grad"] is True for e in facts.of("forward")
            ):
                continue
        elif not (_partly(facts, part, thawed) and event.function.name):
            continue
        if lightning or any(
            e.data["mode"] == TRAIN and _may_be(facts, e.obj, owner if inside else None, part) for e in facts.of("mode")
        ):
            seen.add(id(event.node))
            yield Said(
                event.function.module,
                event.node,
                f"requires_grad = False stops weights, not the running statistics of {part.path}: they move in every "
                "forward in train mode",
                FREEZE.format(part.path),
                sure=True,
            )


def _may_be(facts: Facts, obj: Obj | None, owner: ClassInfo | None, part: Obj) -> bool:
    """Whether what is put into train mode may be the owner of the frozen part."""
    for alias in facts.aliases(obj):
        for candidate in (alias, *alias.sources[:3]):
            if (
                isinstance(candidate, Obj)
                and owner is not None
                and isinstance(candidate.info, ClassInfo)
                and owner in candidate.info.ancestors()
            ):
                return True
            if candidate is part:
                return True
    return False


def _selects(node: ast.AST, tests: tuple[ast.expr, ...]) -> bool:
    """Whether a loop freezes what a test on names lets through: affine parameters, weights, adapters."""
    return any(
        isinstance(c, ast.Constant)
        and isinstance(c.value, str)
        and c.value.lower() in ("bn", "norm", "batchnorm", "bias", "weight")
        for t in tests
        for c in ast.walk(t)
    )


def _partly(facts: Facts, obj: Obj, thawed: list[Obj]) -> bool:
    """Whether a part of a frozen model is trained: a new head, or parameters that were thawed."""
    if any(o is not obj and within(o, obj) for o in thawed):
        return True
    same = {id(o) for o in facts.aliases(obj)}
    return any(
        e.data["name"] in ("fc", "classifier", "head", "last_linear", "_fc", "fc2", "logits")
        and id(canonical(e.obj)) in same
        for e in facts.of("attribute")
    )


def eval_before_train(facts: Facts) -> Iterator[Said]:
    """BN408: layers put in eval, then train() on the model, then a forward."""
    seen: set[int] = set()
    undone = {id(e.node): e for e in facts.of("unfreeze")}
    for _event, c, _level in forwards(facts, managed=True):
        if c.layers is None or c.layers.value != TRAIN or c.no_grad is True or id(c.layers.node) not in undone:
            continue
        frozen = undone[id(c.layers.node)].data["frozen"]
        if id(frozen.node) in seen or frozen.node is None or frozen.function is None:
            continue
        seen.add(id(frozen.node))
        yield Said(
            frozen.function.module,
            frozen.node,
            f"batch norm layers are put in eval, and train() in line {getattr(c.layers.node, 'lineno', 0)} of "
            f"{c.layers.function.module.path.rsplit('/', 1)[-1] if c.layers.function else 'the program'} undoes it",
            FREEZE.format("model") + ", which survives train()",
        )
    for event in facts.of("unfreeze"):
        frozen = event.data["frozen"]
        if frozen.node is None or frozen.function is not event.function or id(frozen.node) in seen or event.obj is None:
            continue
        refrozen = [
            e
            for e in facts.of("layer mode")
            if e.obj is event.obj and e.data["mode"] == EVAL and e.line > event.line and e.function is event.function
        ]
        if refrozen:
            continue
        if facts.trains(event) or event.data["loops"]:
            seen.add(id(frozen.node))
            yield Said(
                event.function.module,
                frozen.node,
                f"batch norm layers are put in eval, and {spelled(event.node)} in line {event.line} undoes it",
                FREEZE.format("model") + ", which survives train()",
            )
    yield from _part_trains_again(facts)


def _part_trains_again(facts: Facts) -> Iterator[Said]:
    """BN408: a part put in eval once, where its owner is made or where its weights are frozen, then train()."""
    seen: set[int] = set()
    trained = [c.obj for e, c, _ in forwards(facts, managed=True) if c.mode.value == TRAIN and facts.trains(e)]
    for event in facts.of("part trains again"):
        frozen, part = event.data["frozen"], event.obj
        if part is None or id(frozen.node) in seen or facts.has(part) != YES:
            continue
        again = [e for e in facts.of("mode") if e.data["mode"] == EVAL and e.node is not frozen.node]
        if any(_same(facts, e.obj, part) and e.function.name != "__init__" for e in again):
            continue
        if not any(_same(facts, o, event.data["of"]) for o in trained):
            continue
        seen.add(id(frozen.node))
        yield Said(
            frozen.function.module,
            frozen.node,
            f"{spelled(frozen.node)} does not last: train() in line {event.line} of "
            f"{event.function.module.path.rsplit('/', 1)[-1]} puts this part back in train mode with the rest",
            FREEZE.format(spelled(frozen.node.func.value)) + ", which survives train()",
        )


def _same(facts: Facts, one: Obj | None, other: Obj) -> bool:
    """Whether two objects may be the same."""
    others = {id(o) for o in facts.aliases(other)}
    return any(id(o) in others for o in facts.aliases(one))


def flipped_tracking(facts: Facts) -> Iterator[Said]:
    """BN411: track_running_stats = False on a layer that keeps its buffers."""
    for event in facts.of("attribute"):
        if event.data["name"] != "track_running_stats" or event.obj is None or event.obj.kind == "self":
            continue
        if not (isinstance(event.data["value"], Const) and event.data["value"].value is False):
            continue
        if not any(
            isinstance(n, ast.Attribute) and n.attr in ("modules", "named_modules", "children")
            for n in ast.walk(event.function.node)
        ) and event.obj.kind not in ("batch norm", "layer", "parameter"):
            continue
        without = any(
            isinstance(n, ast.Assign)
            and isinstance(n.value, ast.Constant)
            and n.value.value is None
            and any(isinstance(t, ast.Attribute) and t.attr in ("running_mean", "running_var") for t in n.targets)
            for n in ast.walk(event.function.node)
        )
        others = [
            e
            for e in facts.of("attribute")
            if e.data["name"] == "track_running_stats" and e is not event and e.function.module is event.function.module
        ]
        restored = any(not (isinstance(e.data["value"], Const) and e.data["value"].value is False) for e in others)
        if without or restored:
            continue
        yield Said(
            event.function.module,
            event.node,
            "track_running_stats = False on a layer that has buffers: train mode then uses the batch and moves "
            "nothing, eval mode still uses "
            "the old buffers",
            "batchnorm.pause(model) for a while, batchnorm.freeze(model) for good",
            sure=event.obj.kind in ("batch norm", "layer"),
        )


WORDS = ("bn", ".bn", "bn.", "_bn", ".bn.", "bn1", "batchnorm", "batch_norm", "BatchNorm", "norm")


def by_name(facts: Facts) -> Iterator[Said]:
    """BN415: 'bn' in name, of a model that has batch norm layers with other names."""
    for event in facts.of("name"):
        word, of = event.data["word"], event.data["of"]
        if word not in WORDS or not isinstance(of, Obj):
            continue
        owner = of.info[0] if of.kind == "iteration" else of.info if of.kind == "layer" else None
        names = facts.contents.layer_names(owner)
        missed = sorted(n for n in names or () if word.strip("._") not in n)
        if names and missed:
            yield Said(
                event.function.module,
                event.node,
                f"batch norm layers are told by {word!r} in their names, which misses "
                f"{', '.join(repr(m) for m in missed[:3])}",
                "isinstance(module, torch.nn.modules.batchnorm._BatchNorm) over model.modules()",
                sure=False,
            )
