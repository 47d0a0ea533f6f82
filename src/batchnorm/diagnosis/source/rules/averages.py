"""BN409, BN410, BN413, BN414: averaged weights and what becomes of the statistics."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import LIKELY, YES
from batchnorm.diagnosis.source.definitions import ClassInfo, in_module
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.names import RECALIBRATES, last
from batchnorm.diagnosis.source.syntax import method_of, reads, spelled, strings, words
from batchnorm.diagnosis.source.trace import EVAL, Event
from batchnorm.diagnosis.source.values import Atom, Form, Obj, canonical, objects_in, owners

BUFFERS = ("buffers", "named_buffers", "_buffers", "running_mean", "running_var")
PARTS = re.compile(r"num_batches|running_|tracked|\bbn|norm")
SELECTED = re.compile(r"(bn_|global_|w_locals_)?keys|layers|skip|ignore|personal|excluded?")
CARES = re.compile(
    r"num_batches_tracked|is_floating_point|is_complex|dtype|float32|int(64)?|long|LongTensor|requires_grad|data_ptr"
)


class Mixture(NamedTuple):
    """A write of one model's parameters: what is written, of which model, and what it is made from."""

    event: Event
    target: Atom
    owner: Obj
    atoms: list[Atom]

    @property
    def others(self) -> list[Atom]:
        """The parameters of other models."""
        return [a for a in self.atoms if a.owner is not self.owner and a.kind in ("parameter", "element")]


def mixtures(facts: Facts) -> Iterator[Mixture]:
    """Writes that mix one model's parameters with another's: `a = d * a + (1 - d) * b`, or a sum over models."""
    for event in facts.of("write"):
        found = [(event.data["atom"], list(now.terms)) for now, _, _ in event.data["values"]]
        for target, atoms in (*found, *event.data.get("mapped", [])):
            if target.kind in ("parameter", "entry", "shadow") and isinstance(target.owner, Obj):
                yield Mixture(event, target, target.owner, atoms)


def averaged(facts: Facts) -> set[int]:
    """Objects whose parameters are an average of another's, by id."""
    return facts.once("averaged", lambda: set(map(id, _averaged(facts))))


def _averaged(facts: Facts) -> Iterator[Obj]:
    for _, _, owner, atoms in mixtures(facts):
        if len({id(a.owner) for a in atoms}) > 1:
            yield from facts.aliases(canonical(owner.info if owner.kind == "state" else owner))
    for event in facts.of("outside"):
        if last(event.data["name"]) in ("AveragedModel", "ModelEMA", "EMA"):
            yield from (o for a in event.data["args"] for o in objects_in(a))


def parameters_only(facts: Facts) -> Iterator[Said]:
    """BN413: an average of parameters(), and no buffer in sight."""
    functions: set[int] = set()
    for mixture in mixtures(facts):
        event, target, owner, _ = mixture
        if not _of_several(event, target) and not _averages(mixture):
            continue
        if id(event.function) in functions or _buffers_too(facts, event, owner):
            continue
        shadow = target.kind == "shadow"
        has = facts.likely if shadow else facts.has
        level = max([0 if shadow else facts.has(owner) or 0, *(has(a.owner) or 0 for a in mixture.others)])
        if level not in (YES, LIKELY):
            continue
        functions.add(id(event.function))
        if not shadow and not _used(facts, owner):
            continue
        if shadow:
            yield said(
                event,
                "an average over parameters alone leaves out the running statistics: the averaged weights are "
                "evaluated with the statistics of other weights",
                "average state_dict() entries that are floating, or batchnorm.recalibrate(averaged, loader)",
                sure=False,
            )
            continue
        yield Said(
            event.function.module,
            event.loop or event.node,
            "an average over parameters() leaves out the running statistics: the averaged model evaluates with those "
            "that it started with",
            "copy the buffers too: for a, b in zip(averaged.buffers(), model.buffers()): a.copy_(b)",
            sure=level == YES and facts.evaluated(owner),
        )


def _used(facts: Facts, owner: Obj) -> bool:
    """Whether an average may run forward with statistics of its own: nothing writes any, and not others alone run."""
    if any(e.data["atom"].kind == "statistic" for e in facts.of("write")):
        return False
    run = [o for e in facts.of("forward") if not in_module(e.function) for o in (e.obj, *(c.obj for c in e.contexts))]
    return owner.kind != "attribute" or not run or any(facts.same(o, owner) for o in run)


def _averages(mixture: Mixture) -> bool:
    """Whether a write mixes parameters with those of one other model, and takes nothing off."""
    (event, target, owner, atoms), others = mixture, mixture.others
    if target.kind not in ("parameter", "shadow") or not others:
        return False
    own = any(a.owner is owner for a in atoms)
    divided = any(now.divided for now, _, _ in event.data["values"])
    if not own and (target.kind == "shadow" or (event.data.get("in_place") != "add_" and not divided)):
        return False
    if not all(isinstance(a.owner, Obj) for a in others):
        return False
    mixed = {id(a.owner) for a in atoms if a.kind in ("parameter", "element")} | {id(owner)}
    return len(mixed) <= 2 and not _subtracts(event)


def _of_several(event: Event, target: Atom) -> bool:
    """Whether a parameter becomes the mean of several models' ones: `torch.stack([...]).mean(0)`, `sum(...) / n`."""
    loop = event.loop
    if loop is None or target.kind != "parameter" or isinstance(event.node, ast.AugAssign):
        return False
    inner = [
        n
        for outer in ast.walk(loop)
        if isinstance(outer, ast.Starred | ast.ListComp | ast.GeneratorExp)
        for n in ast.walk(outer)
    ]
    own = {ast.unparse(n.value) for n in ast.walk(loop.iter) if _parameters(n) and n not in inner}
    others = any(_parameters(n) and ast.unparse(n.value) not in own for n in inner)
    said = words(event.node)
    return others and not said.isdisjoint(("mean", "sum", "average", "stack")) and "grad" not in said


def _parameters(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and node.attr in ("parameters", "named_parameters")


def _subtracts(event: Event) -> bool:
    """Whether another's parameters are taken off: `p -= rate * q`."""
    weights = ((a, at, w) for now, at, _ in event.data["values"] for a, w in now.terms.items())
    off = (a.kind for a, at, w in weights if a != at and w and all(v < 0 for v in w.values()))
    return any(kind in ("parameter", "element") for kind in off)


def _buffers_too(facts: Facts, event: Event, owner: Obj) -> bool:
    """Whether the statistics come along: buffers are copied, or the model runs forward in train mode itself."""
    methods = event.function.owner.methods.values() if event.function.owner is not None else ()
    if any(facts.uses(function, *BUFFERS) for function in (event.function, *methods)):
        return True
    mine = {id(o) for o in facts.aliases(owner)}

    def is_it(obj: Obj) -> bool:
        return any(id(o) in mine for at in owners(canonical(obj)) for o in facts.aliases(at))

    for other in facts.of("write"):
        atom = other.data["atom"]
        if (
            atom.kind in ("buffer", "statistic")
            and isinstance(atom.owner, Obj)
            and (other.function.module is event.function.module or is_it(atom.owner))
        ):
            return True
    modes = {e.data["mode"] for e in facts.of("mode") if e.obj is not None and is_it(e.obj)}
    holder = owner.parent.info if owner.parent is not None else None
    stays = modes == {EVAL} and isinstance(holder, ClassInfo) and not holder.is_module
    for forward in facts.of("forward") if not stays else ():
        # Without a situation that is known, it runs as its owner does: in train mode while that trains.
        if forward.obj is not None and not forward.contexts and is_it(forward.obj):
            return True
        if any((c.mode.value != EVAL or c.layers is not None) and is_it(c.obj) for c in forward.contexts):
            return True
    return not facts.called.isdisjoint(RECALIBRATES)


def soft_copies(facts: Facts) -> Iterator[Obj]:
    """Models whose parameters follow another's, and whose statistics nothing writes."""
    for mixture in mixtures(facts):
        if not _averages(mixture) or facts.uses(mixture.event.function, *BUFFERS):
            continue
        if facts.has(mixture.owner) == YES:
            yield mixture.owner


def counter_too(facts: Facts) -> Iterator[Said]:
    """BN414: every entry of a state averaged, the integer counter among them."""
    seen: set[int] = set()
    for event in facts.of("write"):
        values, outer = event.data["values"], next((n for n in event.data["loops"] if isinstance(n, ast.For)), None)
        if event.data["atom"].kind != "entry" or not values or outer is None or id(outer) in seen:
            continue
        if not any(_averaging(now) for now, _, _ in values) or any(takes_off(now, at) for now, at, _ in values):
            continue
        if takes_some(outer) or facts.uses(event.function, "named_parameters", "parameters"):
            continue
        level = level_of(facts, event)
        if level is None:
            continue
        seen.add(id(outer))
        yield said(
            event,
            "every entry of the state dict is averaged, the integer num_batches_tracked too: torch refuses a fraction "
            "in place, and truncates it when the state is loaded or copied into",
            "average floating entries only: if value.is_floating_point()",
            sure=level == YES and _refused(event),
            edit=_guard(event.node, outer),
        )


def _refused(event: Event) -> bool:
    """Whether an integer entry is divided or scaled where it lies, which torch refuses; a new tensor is cut later."""
    node = event.node
    by = node.value if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Mult) else None
    return (
        (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div))
        or (by is not None and not (isinstance(by, ast.Constant) and isinstance(by.value, int)))
        or event.data.get("in_place") in ("div_", "divide_", "true_divide_", "mul_", "multiply_", "lerp_")
    )


def _guard(node: ast.AST, loop: ast.For) -> Edit | None:
    """A `continue` for integers, where the loop runs over the entries that it writes: the counter stays."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    over: Any = loop.iter
    over = over.func.value if method_of(over) == "keys" else over
    if not isinstance(target, ast.Subscript) or not isinstance(loop.target, ast.Name):
        return None
    first = loop.body[0]
    if ast.dump(over) != ast.dump(target.value) or first.lineno == loop.lineno:
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


def takes_off(form: Form, target: Atom) -> bool:
    """Whether an entry of another state is taken off with a weight that is negative, and one is added."""
    entries = [(a, p) for a, p in form.terms.items() if a.kind == "entry"]
    off = [a for a, p in entries if p and all(v < 0 for v in p.values())]
    own = any(a.owner is target.owner for a, _ in entries)
    if not off or len(entries) < 2 or any(a.owner is target.owner for a in off):
        return False
    plain = len(entries) == 2 and all(set(p) == {()} and abs(p[()]) == 1 for _, p in entries)
    # A plain difference is what another step works with, unless it becomes a model's own state.
    return not plain or (not own and isinstance(target.owner, Obj) and target.owner.kind == "state")


def takes_some(loop: ast.AST) -> bool:
    """Whether the loop tells integers from floating entries, or takes some entries only."""
    said = strings(loop)
    if any(map(CARES.fullmatch, (*words(loop), *said))) or any(PARTS.search(word.lower()) for word in said):
        return True
    asked = [n for n in ast.walk(loop) if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.In | ast.NotIn)]
    if any(isinstance(n.left, ast.Constant) for n in asked) or reads(loop, "type", "to", "float", "long"):
        return True
    return any(isinstance(c, ast.Name) and SELECTED.fullmatch(c.id) for n in asked for c in n.comparators)


def level_of(facts: Facts, event: Event) -> int | None:
    """Whether the averaged states are of models with batch norm."""
    atoms = [a for now, atom, _ in event.data["values"] for a in (*now.terms, atom) if a.kind == "entry"]
    atoms += [a for target, made in event.data.get("mapped", []) for a in (target, *made)]
    states = (s for a in atoms for o in facts.aliases(a.owner) for s in (o, *o.sources[:6]) if isinstance(s, Obj))
    levels = [facts.has(s.info) for s in states if s.kind == "state"]
    best = max((level or 0 for level in levels), default=0)
    if best or (levels and None not in levels):
        return best or None
    spoken = facts.uses(event.function, "state_dict", "deepcopy") or bool(levels)
    if spoken and facts.speaks_near(event.function.module):
        return YES if levels or facts.uses(event.function, "deepcopy") else LIKELY
    return None


def missing_update_bn(facts: Facts) -> Iterator[Said]:
    """BN409: an AveragedModel that is evaluated without update_bn."""
    for event in facts.of("outside"):
        if event.data["name"].rsplit(".", 1)[-1] != "AveragedModel" or "swa_utils" not in event.data["name"]:
            continue
        module = event.function.module
        if "use_buffers" in event.data["keywords"] or not facts.called.isdisjoint(RECALIBRATES):
            continue
        if not facts.uses(module, "update_parameters"):
            continue
        level = max((facts.has(o) or 0 for a in event.data["args"] for o in objects_in(a)), default=0)
        if level:
            yield Said(
                module,
                event.node,
                f"{spelled(event.node)} averages weights and takes the statistics of other weights, those of the "
                "first copy or of the latest step: update_bn is missing",
                "batchnorm.recalibrate(averaged, loader)",
                sure=level == YES and event.data["keywords"].keys().isdisjoint(("avg_fn", "multi_avg_fn")),
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
            yield said(event, f"update_bn {what}", "batchnorm.recalibrate(model, loader)", sure=False)
