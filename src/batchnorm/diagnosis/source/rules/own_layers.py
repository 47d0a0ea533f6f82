"""BN438, BN439: classes that keep statistics outside of the state, and classes whose train() loses the mode."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.definitions import ClassInfo, FunctionInfo
from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.syntax import method_of, name_of, of_self, spelled, strings
from batchnorm.diagnosis.source.values import STATISTICS, External

FRESH = ("zeros", "ones", "empty", "zeros_like", "ones_like", "tensor", "full")
KEEPS = ("state_dict", "_save_to_state_dict", "get_extra_state", "_apply", "__setattr__", "Buffer")


def no_buffers(facts: Facts) -> Iterator[Said]:
    """BN438: `self.running_mean = torch.zeros(c)` in a torch module."""
    for owner in facts.classes:
        bases = [a.name for a in owner.ancestors() if isinstance(a, External)]
        if not owner.is_module or not all(b.endswith(".Module") for b in bases) or facts.uses_in(owner, *KEEPS):
            continue
        text, given = strings(owner.node), _statistics(owner)
        found = [(n, name) for n, name in _fresh(owner) if name in given and name not in text]
        if found:
            node, name = found[0]
            yield Said(
                owner.module,
                node,
                f"self.{name} is a plain tensor: state_dict() does not hold it, so a loaded {owner.name} evaluates "
                "with new statistics, and .to() leaves it behind",
                f'self.register_buffer("{name}", {spelled(node.value)})',
            )


def _statistics(owner: ClassInfo) -> set[str]:
    """The attributes that hold running statistics: by their names, or given to F.batch_norm."""
    found: set[str] = {*STATISTICS}
    for n in ast.walk(owner.node):
        if isinstance(n, ast.Call) and spelled(n.func).rsplit(".", 1)[-1] == "batch_norm":
            given = [*n.args[1:3], *(k.value for k in n.keywords if k.arg in ("running_mean", "running_var"))]
            found.update(a.attr for a in given if isinstance(a, ast.Attribute))
    return found


def _fresh(owner: ClassInfo) -> Iterator[tuple[ast.Assign, str]]:
    """The attributes that a constructor gives a new tensor."""
    init = owner.methods.get("__init__")
    for n in ast.walk(init.node) if init is not None else ():
        if not isinstance(n, ast.Assign) or not isinstance(n.targets[0], ast.Attribute):
            continue
        value: Any = n.value
        while method_of(value) in ("to", "cuda"):
            value = value.func.value
        name = spelled(value.func) if isinstance(value, ast.Call) else ""
        if name.startswith("torch.") and name.rsplit(".", 1)[-1] in FRESH and of_self(n.targets[0]):
            yield n, n.targets[0].attr


def train_loses_the_mode(facts: Facts) -> Iterator[Said]:
    """BN439: a train() of its own that drops `mode`, does not reach all parts, or returns nothing that is used."""
    for owner in facts.classes:
        train = owner.methods.get("train") if owner.is_module else None
        if train is None or not isinstance(train.node, ast.FunctionDef) or facts.steps(train):
            continue
        names = [a.arg for a in train.arguments.args[1:]]
        if len(names) == 1 and "eval" not in owner.methods:
            yield from _drops(facts, owner, train, names[0])
            yield from _returns_nothing(facts, owner, train)


def _drops(facts: Facts, owner: ClassInfo, train: FunctionInfo, mode: str) -> Iterator[Said]:
    nodes = list(ast.walk(train.node))
    sets = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr == "training" and isinstance(n.ctx, ast.Store)]
    above = [n for n in nodes if isinstance(n, ast.Call) and _inherited(n)]
    inside = {id(n) for i in nodes if isinstance(i, ast.If | ast.IfExp | ast.For) for n in ast.walk(i)}
    if sets or any(id(n) in inside for n in above):
        return
    for call in above:
        given = [a for a in (*call.args, *(k.value for k in call.keywords)) if spelled(a) not in ("self", "True")]
        if not given:
            yield Said(
                train.module,
                call,
                f"{spelled(call)} drops {mode}: eval() calls train(False), so {owner.name}.eval() puts the model into "
                "train mode",
                f"super().train({mode})",
            )
            return
    parts = {p for n in nodes if isinstance(n, ast.Call) for p in _part(n)}
    passed = any(isinstance(n, ast.Name) and n.id == mode and isinstance(n.ctx, ast.Load) for n in nodes)
    if above or passed or not parts:
        return
    left = [n for n, slot in owner.self_obj.attrs.items() if n not in parts and _has_modes(facts, slot)]
    yield Said(
        train.module,
        train.node,
        f"train() of {owner.name} ignores {mode} and calls no super().train({mode}): eval() and train() do not reach "
        + (f"self.{left[0]}" if left else "the model, and return None"),
        f"super().train({mode}) first, and return self",
        sure=bool(left),
    )


def _has_modes(facts: Facts, slot: object) -> bool:
    return facts.has(slot) == YES or facts.contents.dropout(slot)


def _inherited(call: ast.Call) -> bool:
    """`super().train(...)` and `Base.train(self, ...)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "train":
        return False
    inner = call.func.value
    if isinstance(inner, ast.Call):
        return isinstance(inner.func, ast.Name) and inner.func.id == "super"
    return [n.id for n in call.args[:1] if isinstance(n, ast.Name)] == ["self"]


def _part(call: ast.Call) -> Iterator[str]:
    """`body` of `self.body.eval()`."""
    part = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr in ("train", "eval") else None
    if part is not None and of_self(part):
        yield name_of(part)


def _returns_nothing(facts: Facts, owner: ClassInfo, train: FunctionInfo) -> Iterator[Said]:
    if any(isinstance(n, ast.Return) and n.value is not None for n in ast.walk(train.node)):
        return
    for event in facts.of("mode"):
        if event.obj is None or id(event.node) in facts.statements or not facts.holds(event.obj, owner, 3):
            continue
        yield Said(
            train.module,
            train.node,
            f"train() of {owner.name} returns None, and eval() returns what it returns: "
            f"{spelled(event.node)} in line {event.line} is None",
            "return self",
        )
        return
