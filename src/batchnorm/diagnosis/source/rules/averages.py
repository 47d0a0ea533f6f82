"""BN409, BN410, BN413, BN414: averaged weights and what becomes of the statistics."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said, spelled
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.trace import EVAL, Event
from batchnorm.diagnosis.source.values import Atom, Form, Obj, canonical, objects_in

RECALIBRATE = ("update_bn", "bn_update", "recalibrate", "update_bn_stats")
BUFFERS = ("buffers", "named_buffers", "_buffers", "running_mean", "running_var")
PARTS = re.compile(r"num_batches|running_|tracked|\bbn|norm")
SELECTED = (
    "keys",
    "layers",
    "skip",
    "ignore",
    "personal",
    "bn_keys",
    "w_locals_keys",
    "global_keys",
    "exclude",
    "excluded",
)
CARES = {
    "num_batches_tracked",
    "is_floating_point",
    "dtype",
    "long",
    "int64",
    "is_complex",
    "requires_grad",
    "float32",
    "LongTensor",
    "int",
    "data_ptr",
}


def mixtures(facts: Facts) -> Iterator[tuple[Event, Atom, list[Atom]]]:
    """Writes that mix one model's parameters with another's: `a = d * a + (1 - d) * b`, or a sum over models."""
    for event in facts.of("write"):
        found = [(event.data["atom"], list(now.terms)) for now, _, _ in event.data["values"]]
        for target, atoms in (*found, *event.data.get("mapped", [])):
            if target.kind in ("parameter", "entry"):
                yield event, target, atoms


def averaged(facts: Facts) -> set[int]:
    """Objects whose parameters are an average of another's, by id."""
    known = facts.__dict__.setdefault("_averaged", None)
    if known is None:
        known = set()
        for _, target, atoms in mixtures(facts):
            if isinstance(target.owner, Obj) and len({id(a.owner) for a in atoms}) > 1:
                owner = target.owner.info if target.owner.kind == "state" else target.owner
                for obj in facts.aliases(canonical(owner)):
                    known.add(id(obj))
        for event in facts.of("outside"):
            if event.data["name"].rsplit(".", 1)[-1] in ("AveragedModel", "ModelEMA", "EMA"):
                known.update(id(o) for a in event.data["args"] for o in objects_in(a))
        facts.__dict__["_averaged"] = known
    return known


def parameters_only(facts: Facts) -> Iterator[Said]:
    """BN413: an average of parameters(), and no buffer in sight."""
    seen: set[int] = set()
    functions: set[int] = set()
    for event, target, atoms in mixtures(facts):
        owner = target.owner
        if target.kind != "parameter" or not isinstance(owner, Obj) or id(event.node) in seen:
            continue
        others = [
            a
            for a in atoms
            if a.owner is not owner and (a.kind == "parameter" or (a.kind == "element" and isinstance(a.owner, Obj)))
        ]
        if not others or (event.data.get("in_place") == "copy_" and not any(a.owner is owner for a in atoms)):
            continue
        if not any(a.owner is owner for a in atoms) and event.data.get("in_place") != "add_":
            continue
        if len({id(a.owner) for a in atoms if a.kind in ("parameter", "element")} | {id(owner)}) > 2 or _subtracts(
            event
        ):
            continue  # a correction or a gradient, not an average
        if id(event.function) in functions or _buffers_too(facts, event, owner):
            continue
        level = max(facts.has(owner) or 0, *(facts.has(a.owner) or 0 for a in others))
        if level not in (YES, LIKELY):
            continue
        seen.add(id(event.node))
        functions.add(id(event.function))
        loop = next((n for n in reversed(event.data["loops"]) if isinstance(n, ast.For)), event.node)
        yield Said(
            event.function.module,
            loop,
            "an average over parameters() leaves out the running statistics: the averaged model evaluates with those "
            "that it started with",
            "copy the buffers too: for a, b in zip(averaged.buffers(), model.buffers()): a.copy_(b)",
            sure=level == YES,
        )


def _subtracts(event: Event) -> bool:
    """Whether another's parameters are taken off: `p -= rate * q`."""
    for now, current, _ in event.data["values"]:
        for atom, weight in now.terms.items():
            if (
                atom != current
                and atom.kind in ("parameter", "element")
                and weight
                and all(v < 0 for v in weight.values())
            ):
                return True
    return False


def _buffers_too(facts: Facts, event: Event, owner: Obj) -> bool:
    """Whether the statistics come along: buffers are copied, or the model runs forward in train mode itself."""
    if facts.uses(event.function, *BUFFERS) or (
        event.function.owner is not None and any(facts.uses(m, *BUFFERS) for m in event.function.owner.methods.values())
    ):
        return True
    mine = {id(o) for o in facts.aliases(owner)}

    def is_it(obj: Obj) -> bool:
        at: Obj | None = canonical(obj)
        while at is not None:
            if any(id(o) in mine for o in facts.aliases(at)):
                return True
            at = canonical(at.parent) if at.kind == "attribute" else None
        return False

    for other in facts.of("write"):
        atom = other.data["atom"]
        if (
            atom.kind in ("buffer", "statistic")
            and isinstance(atom.owner, Obj)
            and (other.function.module is event.function.module or is_it(atom.owner))
        ):
            return True
    for forward in facts.of("forward"):
        # Without a situation that is known, it runs as its owner does: in train mode while that trains.
        if forward.obj is not None and not forward.contexts and is_it(forward.obj):
            return True
        if any(c.mode.value != EVAL and is_it(c.obj) for c in forward.contexts):
            return True
    return not facts.called.isdisjoint(RECALIBRATE)


def counter_too(facts: Facts) -> Iterator[Said]:
    """BN414: every entry of a state averaged, the integer counter among them."""
    seen: set[int] = set()
    for event in facts.of("write"):
        if event.data["atom"].kind != "entry" or not event.data["values"]:
            continue
        loop = next((n for n in reversed(event.data["loops"]) if isinstance(n, ast.For)), None)
        outer = next((n for n in event.data["loops"] if isinstance(n, ast.For)), None)
        if loop is None or outer is None or id(outer) in seen:
            continue
        if not any(_averaging(now) for now, _, _ in event.data["values"]):
            continue
        if _cares(facts, event, outer):
            continue
        level = _level(facts, event)
        if level is None:
            continue
        seen.add(id(outer))
        yield Said(
            event.function.module,
            event.node,
            "every entry of the state dict is averaged, the integer num_batches_tracked too: torch refuses a fraction "
            "in place, and truncates "
            "it when the state is loaded or copied into",
            "average floating entries only: if value.is_floating_point()",
            sure=level == YES and event.data.get("in_place") != "copy_",
            edit=_guard(event.node, outer),
        )


def _guard(node: ast.AST, loop: ast.For) -> Edit | None:
    """A `continue` for integers, where the loop runs over the entries that it writes: the counter stays."""
    target = (
        node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AugAssign) else None
    )
    over = (
        loop.iter.func.value
        if isinstance(loop.iter, ast.Call)
        and isinstance(loop.iter.func, ast.Attribute)
        and loop.iter.func.attr == "keys"
        else loop.iter
    )
    if not (
        isinstance(target, ast.Subscript)
        and isinstance(loop.target, ast.Name)
        and ast.dump(over) == ast.dump(target.value)
    ):
        return None
    first = loop.body[0]
    if first.lineno == loop.lineno:
        return None
    indent = " " * first.col_offset
    text = f"if not {ast.unparse(over)}[{loop.target.id}].is_floating_point():\n{indent}    continue\n{indent}"
    return Edit(first.lineno, first.col_offset, first.lineno, first.col_offset, text)


def _averaging(form: Form) -> bool:
    """Whether a write averages: divides an entry, or adds weighted entries of several states."""
    entries = [a for a in form.terms if a.kind == "entry"]
    if form.divided and entries:
        return True
    return len(entries) >= 2 and any(
        set(p) != {()} or any(v != int(v) for v in p.values()) for p in form.terms.values()
    )


def _cares(facts: Facts, event: Event, loop: ast.AST) -> bool:
    """Whether the loop tells integers from floating entries, or takes some entries only."""
    for n in ast.walk(loop):
        word = (
            n.attr
            if isinstance(n, ast.Attribute)
            else n.id
            if isinstance(n, ast.Name)
            else n.value
            if isinstance(n, ast.Constant)
            else ""
        )
        if isinstance(word, str) and word in CARES:
            return True
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and PARTS.search(n.value.lower()):
            return True
        if (
            isinstance(n, ast.Attribute)
            and n.attr in ("type", "to", "float", "long", "requires_grad")
            and isinstance(n.ctx, ast.Load)
        ):
            return True
        if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.In | ast.NotIn) and isinstance(n.left, ast.Constant):
            return True
        if (
            isinstance(n, ast.Compare)
            and isinstance(n.ops[0], ast.NotIn | ast.In)
            and any(isinstance(c, ast.Name) and c.id in SELECTED for c in n.comparators)
        ):
            return True
    return facts.uses(event.function, "named_parameters", "parameters")


def _level(facts: Facts, event: Event) -> int | None:
    """Whether the averaged states are of models with batch norm."""
    owners: list[Any] = []
    for now, atom, _ in event.data["values"]:
        owners += [a.owner for a in (*now.terms, atom) if a.kind == "entry"]
    for target, atoms in event.data.get("mapped", []):
        owners += [a.owner for a in (target, *atoms)]
    best: int | None = None
    is_state = False
    for owner in owners:
        for obj in facts.aliases(owner) if isinstance(owner, Obj) else []:
            for candidate in (obj, *obj.sources[:6]):
                if isinstance(candidate, Obj) and candidate.kind == "state":
                    is_state = True
                    best = max(best or 0, facts.has(candidate.info) or 0) or None
    if best:
        return best
    spoken = facts.uses(event.function, "state_dict", "deepcopy", "load_state_dict") or is_state
    if spoken and facts.speaks_near(event.function.module):
        return YES if is_state or facts.uses(event.function, "deepcopy") else LIKELY
    return None


def missing_update_bn(facts: Facts) -> Iterator[Said]:
    """BN409: an AveragedModel that is evaluated without update_bn."""
    for event in facts.of("outside"):
        if event.data["name"].rsplit(".", 1)[-1] != "AveragedModel" or "swa_utils" not in event.data["name"]:
            continue
        module = event.function.module
        if "use_buffers" in event.data["keywords"] or not facts.called.isdisjoint(RECALIBRATE):
            continue
        if not facts.uses(module, "update_parameters"):
            continue
        level = max((facts.has(o) or 0 for a in event.data["args"] for o in objects_in(a)), default=0)
        if level:
            yield Said(
                module,
                event.node,
                f"{spelled(event.node)} averages weights and keeps the statistics of its first copy: update_bn is "
                "missing",
                "batchnorm.recalibrate(averaged, loader)",
                sure=level == YES,
            )


def update_bn_with_dropout(facts: Facts) -> Iterator[Said]:
    """BN410: update_bn switches dropout on and overwrites frozen layers."""
    for event in facts.of("outside"):
        name = event.data["name"]
        if not name.endswith("swa_utils.update_bn") or len(event.data["args"]) < 2:
            continue
        models = objects_in(event.data["args"][1])
        dropout = any(facts.contents.dropout(o) for o in models)
        frozen = any(c.layers is not None and c.layers.value == "eval" for c in event.contexts)
        if dropout or frozen:
            what = "switches dropout on while it measures" if dropout else "resets layers that were frozen by eval()"
            yield Said(
                event.function.module,
                event.node,
                f"update_bn {what}",
                "batchnorm.recalibrate(model, loader)",
                sure=False,
            )
