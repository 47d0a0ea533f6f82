"""Which literal values a parameter may have: its default, and what all calls of the linted files give it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice, product
from typing import Any

from batchnorm.diagnosis.source.conditions import around, decided
from batchnorm.diagnosis.source.definitions import FunctionInfo, Module
from batchnorm.diagnosis.source.syntax import calls_by_name, name_of, nodes_of, of_self
from batchnorm.diagnosis.source.trace import Test
from batchnorm.diagnosis.source.values import Const

Literals = frozenset[Any] | None  # None: one of them is unknown
MOST_CALLS = 4  # of functions that hand on a parameter
MOST_VALUES, MOST_CHOICES = 4, 16


def function_at(module: Module, node: ast.AST) -> FunctionInfo:
    """The function that a place is in, or the file's own code."""
    inside = module.body
    for function in module.functions:
        start = getattr(function.node, "lineno", 0)
        if start <= getattr(node, "lineno", 0) <= getattr(function.node, "end_lineno", 0):
            inside = max(inside, function, key=lambda f: getattr(f.node, "lineno", 0))
    return inside


class Parameters:
    """The values of parameters, each worked out once."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = modules
        self._known: dict[tuple[int, str], Literals] = {}

    def exclude(self, function: FunctionInfo, node: ast.AST) -> bool:
        """Whether a place is in a branch that no value of the parameters, and of attributes made of them, lets in."""
        tests = around(function.node, node) or []
        asked = {name_of(n): n for t in tests for n in ast.walk(t.node) if isinstance(n, ast.Name | ast.Attribute)}
        held = {name: self._literals(function.module, function, n, 0) for name, n in asked.items()}
        known = {name: values for name, values in held.items() if values is not None}
        choices = [dict(zip(known, c, strict=True)) for c in islice(product(*known.values()), MOST_CHOICES + 1)]
        return bool(known) and len(choices) <= MOST_CHOICES and any(_never(test, choices) for test in tests)

    def values(self, function: FunctionInfo, name: str, depth: int = 0) -> Literals:
        """The literal values that a parameter may have."""
        key = (id(function), name)
        if key not in self._known:
            self._known[key] = None  # while it is worked out
            self._known[key] = self._work_out(function, name, depth)
        return self._known[key]

    def _work_out(self, function: FunctionInfo, name: str, depth: int) -> Literals:
        owner = function.owner if function.name == "__init__" else None
        heirs = [] if owner is None else [h for h in owner.heirs if "__init__" not in h.methods]
        names = {function.name} if owner is None else {owner.name, *(h.name for h in heirs)}
        if not names.isdisjoint(self._handed_on) or depth > MOST_CALLS:
            return None
        default = frozenset((function.literals[name],)) if name in function.literals else None
        at = function.positional.index(name) - (function.owner is not None) if name in function.positional else 99
        found, calls = set[Any](), [*self._calls_of(function, names)]
        if not calls:
            return default
        for module, call in calls:
            if any(isinstance(a, ast.Starred) for a in call.args) or None in [k.arg for k in call.keywords]:
                return None
            given = next((k.value for k in call.keywords if k.arg == name), call.args[at] if call.args[at:] else None)
            values = self._literals(module, function_at(module, call), given, depth) if given is not None else default
            if values is None:
                return None
            found |= values
        return frozenset(found) if len(found) <= MOST_VALUES else None

    def _calls_of(self, function: FunctionInfo, names: Iterable[str]) -> Iterator[tuple[Module, ast.Call]]:
        for name in names:
            yield from self._calls.get(name, ())
        for heir in function.owner.heirs if function.name == "__init__" and function.owner is not None else ():
            init = heir.methods.get("__init__")
            for n in nodes_of(init.node) if init is not None else ():
                if isinstance(n, ast.Call) and calls_by_name(n, "__init__"):
                    yield heir.module, n

    def _literals(self, module: Module, holder: FunctionInfo, node: ast.AST, depth: int) -> Literals:
        """The literal values of an expression in a function."""
        if isinstance(node, ast.Constant):
            return frozenset((node.value,))
        if isinstance(node, ast.Attribute) and of_self(node) and holder.owner is not None:
            return self._of_attribute(holder, node.attr, depth)
        if not isinstance(node, ast.Name):
            return None
        if node.id in (*holder.positional, *(a.arg for a in holder.arguments.kwonlyargs)):
            again = (n for n in nodes_of(holder.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            return None if any(n.id == node.id for n in again) else self.values(holder, node.id, depth + 1)
        held = module.static(node)
        return frozenset((held.value,)) if isinstance(held, Const) else None

    def _of_attribute(self, holder: FunctionInfo, name: str, depth: int) -> Literals:
        """The literal values of an attribute that a constructor assigns, and nothing else does."""
        classes = holder.owner.lineage if holder.owner is not None else []
        writes = [
            (f, n)
            for c in classes
            for f in c.methods.values()
            for n in nodes_of(f.node)
            if isinstance(n, ast.Assign) and any(of_self(t) and name_of(t) == name for t in n.targets)
        ]
        if len(writes) != 1 or writes[0][0].name != "__init__":
            return None
        function, write = writes[0]
        return self._literals(function.module, function, write.value, depth)

    @cached_property
    def _calls(self) -> dict[str, list[tuple[Module, ast.Call]]]:
        found = defaultdict[str, list[tuple[Module, ast.Call]]](list)
        for module in self._modules:
            for call in (n for n in module.nodes if isinstance(n, ast.Call)):
                found[name_of(call.func)].append((module, call))
        return found

    @cached_property
    def _handed_on(self) -> frozenset[str]:
        """The names of classes and functions that are values too: handed on, renamed, registered."""
        found = set[str]()
        for module in self._modules:
            apart = set[int]()
            for n in module.nodes:
                if isinstance(n, ast.Call):
                    apart |= {id(n.func), *map(id, n.args if name_of(n.func) in ("super", "isinstance") else ())}
                elif isinstance(n, ast.ClassDef):
                    apart |= set(map(id, n.bases))
                    found |= {n.name} if n.decorator_list else set()
                elif isinstance(n, ast.alias) and n.asname not in (None, n.name):
                    found.add(n.name)
            loads = (n for n in module.nodes if isinstance(n, ast.Name | ast.Attribute) and isinstance(n.ctx, ast.Load))
            found |= {name_of(n) for n in loads if id(n) not in apart}
        return frozenset(found)


def _never(test: Test, choices: list[dict[str, Any]]) -> bool:
    return all(decided(test, given) is False for given in choices)
