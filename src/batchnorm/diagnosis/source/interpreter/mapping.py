"""What a callee's objects are at a call: its parameters are the arguments, its `self` is the owner."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import FunctionInfo
from batchnorm.diagnosis.source.interpreter.containers import Containers
from batchnorm.diagnosis.source.values import (
    Atom,
    Choice,
    Const,
    Form,
    Obj,
    Scalar,
    Tuple,
    canonical,
    choice,
    objects_in,
    options,
)

DEEPEST_VALUE, DEEPEST_PATH = 4, 8


class Mapping:
    """Callable on a callee's value; each object is worked out once."""

    def __init__(
        self, walk: Containers, node: ast.Call, info: FunctionInfo, bound: dict[str, Any], owner: Obj | None
    ) -> None:
        self.walk, self.node, self.info = walk, node, info
        self.in_script = isinstance(walk.info.node, ast.Module)
        own = info.owner.self_obj if info.owner is not None else None
        self.self_obj = own if own is not owner and owner is not None else None
        self.given = {n: Const(v) for n, v in info.literals.items()} | bound
        self._known: dict[Obj, Any] = {slot: bound.get(name) for name, slot in info.params.items()}
        if self.self_obj is not None:
            self._known[self.self_obj] = owner

    def __call__(self, value: Any, depth: int = 0) -> Any:
        """A value of the callee, here."""
        if isinstance(value, Obj):
            if value not in self._known:
                self._known[value] = self._object(value, depth)
            return self._known[value]
        if isinstance(value, Scalar):
            return tensors.substitute(value, self)
        if isinstance(value, Tuple):
            return Tuple(tuple(self(v, depth + 1) for v in value.items)) if depth < DEEPEST_VALUE else None
        if isinstance(value, Choice):
            return choice([self(v, depth + 1) for v in value.options]) if depth < DEEPEST_VALUE else None
        return value

    def _object(self, value: Obj, depth: int) -> Any:
        kind, parent = value.kind, value.parent
        if kind == "global" and self.in_script and value.info is self.walk.info.module:
            return self.walk.state.env.get(value.name, value)
        if parent is None or depth >= DEEPEST_PATH or kind not in ("attribute", "batch norm"):
            return value
        here = self(parent, depth + 1)
        if kind == "batch norm":
            return value if here is parent else here
        if here is parent:
            return self.walk.state.heap.get((parent, value.name), value)
        if value.name == "[]":
            of_dict = isinstance(here, Obj) and here.kind == "dict"
            return choice(list(here.sources)) if of_dict else self.walk.element(here)
        return choice([self.walk.read(p, value.name, self.node) for p in options(here)]) if here is not None else None

    def objects(self, value: Any) -> Iterator[Obj]:
        """The objects that a value is here, behind wrappers; of a list its elements."""
        found = (s for o in objects_in(self(value)) for s in (o.sources if o.kind == "list" else (o,)))
        return (canonical(o) for s in found for o in options(s) if isinstance(o, Obj))

    def atom(self, atom: Atom) -> Atom | None:
        """A tensor of the callee, here."""
        owner = atom.owner
        if not isinstance(owner, Obj):
            return None
        if atom.kind == "element" and owner.name == "[]" and owner.parent is not None:
            forms = [o for o in options(self.walk.element(self(owner.parent))) if isinstance(o, Form)]
            return next(iter(forms[0].terms)) if forms else None
        return next((atom._replace(owner=obj) for obj in self.objects(owner)), None)
