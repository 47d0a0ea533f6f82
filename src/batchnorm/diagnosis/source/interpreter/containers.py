"""What the elements of containers, states and iterations are."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from batchnorm.diagnosis.source.contents import inflow
from batchnorm.diagnosis.source.interpreter.modes import Modes
from batchnorm.diagnosis.source.names import last
from batchnorm.diagnosis.source.values import (
    STATISTICS,
    Atom,
    Choice,
    ClassName,
    Const,
    External,
    Form,
    Obj,
    Tuple,
    canonical,
    choice,
    objects_in,
    options,
)

ELEMENTS = ("iteration", "zip", "enumerate", "list", "state")
DEEPEST_DICT = 5  # dicts inside dicts, and names of dicts
ITERATIONS = [named + of for of in ("parameters", "buffers", "modules", "children") for named in ("", "named_")]


class Containers(Modes):
    """Subscripts and iteration."""

    def item(self, base: Any, key: Any) -> Any:
        """`base[key]`."""
        if isinstance(base, Choice):
            return choice([self.item(option, key) for option in base.options])
        if isinstance(base, Tuple):
            at = key.value if isinstance(key, Const) else None
            if isinstance(at, int) and -len(base.items) <= at < len(base.items):
                return base.items[at]
            return choice(list(base.items))
        if isinstance(base, External) and base.name.endswith("__dict__"):
            return base
        if isinstance(base, Form) or not isinstance(base, Obj):
            return None
        if base.kind == "iteration" and base.name in ("named_parameters", "named_buffers"):
            return self._iterated(base.info[0], base.name, base).items[1]
        if isinstance(key, ClassName) and isinstance(key.obj, Obj) and key.obj.name == "named_parameters":
            atom = Atom("parameter", base.info, "") if base.kind == "state" else Atom("shadow", base)
            return Form({atom: {(): 1.0}}, live=True)
        if isinstance(key, Obj) and key.kind == "key" and self._holds_models(base):
            return base.attr("[]")
        if isinstance(key, Obj) and key.kind == "key":
            return Form({Atom("entry", base, ""): {(): 1.0}}, live=True)
        if base.kind == "state":
            if isinstance(key, Const) and isinstance(key.value, str) and last(key.value) in STATISTICS:
                owner = base.info
                for part in key.value.split(".")[:-1]:
                    owner = owner.attr(part) if isinstance(owner, Obj) else owner
                return self.statistic(owner, last(key.value)) if isinstance(owner, Obj) else None
            return None
        if isinstance(key, Const):
            if key.value in STATISTICS and base.kind == "attribute" and base.name == "_buffers" and base.parent:
                return self.statistic(base.parent, key.value)
            known = self.state.heap.get((base, f"[{key.value}]"))
            if known is not None:
                return known
            if isinstance(key.value, int) and base.kind == "iteration":
                return self.element(base)
            if base.kind == "external" and last(base.info[0]) == "Sequential":
                return self._part(base, key.value)
            slot = base.attrs.get(f"[{key.value}]")
            if slot is not None and base.kind == "dict":
                return slot.sources[0] if len(slot.sources) == 1 else slot
        if base.kind in ("list", "dict"):
            found = choice(list(base.sources))
            if found is not None and len(options(found)) == 1:
                return found
        if isinstance(key, Const):
            return base.attr(f"[{key.value}]")
        if base.kind == "iteration":
            return self.element(self.some(base))
        slot = base.attr("[]")
        for source in base.sources[:8] if base.kind in ("list", "dict") else ():
            slot.flows_from(source)
        return slot

    def _part(self, sequence: Obj, at: Any) -> Obj:
        """A part of torch's Sequential by its place, or several of them."""
        slot = sequence.attr(f"[{at}]")
        given = getattr(sequence.node, "args", [])
        plain = len(given) == len(sequence.sources) and not any(isinstance(a, ast.Starred) for a in given)
        one = isinstance(at, int) and plain and -len(given) <= at < len(given)
        for source in [sequence.sources[at]] if one else sequence.sources:
            slot.flows_from(source)
        return slot

    def entries(self, value: Any, depth: int = 0) -> dict[str, Any]:
        """What dicts hold under literal names; several values, or None where one is not known."""
        found: dict[str, Any] = {}
        for obj in objects_in(value) if depth < DEEPEST_DICT else ():
            if obj.kind == "dict":
                for name, slot in obj.attrs.items():
                    if name[:2] == "[*":
                        found.update(self.entries(choice(list(slot.sources)), depth + 1))
                    elif name.startswith("["):
                        found[name[1:-1]] = choice(list(slot.sources))
            elif obj.kind in ("global", "attribute", "parameter", "result", "copy"):
                for source in inflow(obj)[:4]:
                    found.update(self.entries(source, depth + 1))
        return found

    def dictionary(self, node: ast.AST, entries: list[tuple[Any, Any]]) -> Obj:
        """A dict with these entries; keys that are no literals stay unknown."""
        made = self.program.obj((node, "dict"), lambda: Obj("dict", "dict", node=node))
        for at, (key, value) in enumerate(entries):
            if key is None:  # **others
                for option in options(value):
                    made.attr(f"[*{at}]").flows_from(option)
            if isinstance(key, Const):
                self.state.heap[made, f"[{key.value}]"] = value
                made.attr(f"[{key.value}]").flows_from(value)
            for option in options(value):
                made.flows_from(option)
        return made

    def collected(self, node: ast.AST, into: Obj, values: list[Any]) -> None:
        """Parameters that are put into a list one by one, and what is asked of their names."""
        for value in (o for v in values for o in options(v)):
            held = value.sources if isinstance(value, Obj) and value.kind == "dict" else [value]
            for form in (h for h in held if isinstance(h, Form)):
                owner = next((a.owner for a in form.terms if a.kind == "parameter"), None)
                if isinstance(owner, Obj):
                    self.event("collect", node, owner, into=into, tests=(*self.tests, *self.skipped))

    def together(self, node: ast.AST, values: list[Any]) -> Obj:
        """A list of what several lists, or iterations over parameters, have."""
        made = self.program.obj((node, "list"), lambda: Obj("list", "joined", node=node))
        for option in (o for value in values for o in options(value)):
            made.flows_from(option)
        return made

    def element(self, value: Any) -> Any:
        """What a loop over a value gives."""
        if isinstance(value, Tuple):
            return choice(list(value.items))
        if isinstance(value, Choice):
            return self._one_of([self.element(v) for v in value.options])
        if not isinstance(value, Obj):
            return None
        if value.kind == "external" and last(value.info[0]) == "ModuleList" and value.sources:
            return choice(list(value.sources))
        if value.kind == "zip":
            return Tuple(tuple(self.element(v) for v in value.info))
        if value.kind == "enumerate":
            return Tuple((None, self.element(value.info)))
        if value.kind == "iteration":
            owner, how = value.info
            return self._iterated(owner, how, value)
        if self._holds_parameters(value):
            return Form({Atom("shadow", value): {(): 1.0}}, live=True)
        copied = value.sources[0] if value.kind == "copy" and value.sources else None
        if isinstance(copied, Obj) and copied.kind == "state":
            return self.element(copied)
        if value.kind == "state":
            return self.program.obj((id(value), "key"), lambda: Obj("key", "key", info=value))
        if value.name == "joined":
            inside = [self.element(s) if isinstance(s, Obj) and s.kind in ELEMENTS else s for s in value.sources]
            return self._one_of(inside)
        if value.kind in ("list", "dict"):
            return choice(list(value.sources)) if value.kind == "list" else None
        if value.kind in ("attribute", "parameter", "global"):
            held = [s for s in inflow(value) if isinstance(s, Obj) and s.kind in ELEMENTS]
            if len(held) == 1:
                return self.element(held[0])
        return value.attr("[]")

    def _one_of(self, found: list[Any]) -> Any:
        """One of several elements; of the parameters of several models, those of the first stand for all."""
        forms = [f for f in found if isinstance(f, Form)]
        return replace(forms[0], others=tuple(forms[1:])) if forms and len(forms) == len(found) else choice(found)

    def some(self, iteration: Obj) -> Obj:
        """The first of the parameters, children or modules that an iteration gives."""
        key, given = (id(iteration), "some"), {"some": Const(True)}
        return self.program.obj(key, lambda: replace(iteration, attrs={}, sources=[], given=given))

    def _holds_models(self, owner: Obj) -> bool:
        """Whether a name stands for a dict of objects."""
        held = [s for s in inflow(owner) if isinstance(s, Obj)] if owner.kind in ("parameter", "attribute") else []
        return bool(held) and all(s.kind == "dict" and any(isinstance(o, Obj) for o in s.sources) for s in held)

    def _holds_parameters(self, value: Obj, copied: bool = False) -> bool:
        """Whether a value is a list of copies of parameters: `deepcopy([p.data for p in model.parameters()])`."""
        if value.kind in ("copy", "result") and len(value.sources) == 1 and isinstance(value.sources[0], Obj):
            return self._holds_parameters(value.sources[0], copied or value.kind == "copy")
        forms = [s for s in value.sources if isinstance(s, Form)] if value.kind == "list" else []
        kept = [f for f in forms if (copied or not f.live) and all(a.kind == "parameter" for a in f.terms)]
        return bool(kept) and len(kept) == len(value.sources)

    def _iterated(self, owner: Any, how: str, iteration: Obj) -> Any:
        made = self.program.obj
        if how in ("keys", "items", "values") and isinstance(owner, Obj) and owner.kind == "iteration":
            named = self._iterated(owner.info[0], owner.name, owner)  # a dict of named parameters
            return named if how == "items" or not isinstance(named, Tuple) else named.items[how == "values"]
        if how in ("keys", "items", "values"):
            key = made((id(owner), "key"), lambda: Obj("key", "key", info=owner))
            entry = Form({Atom("entry", owner, ""): {(): 1.0}}, live=True)
            value: Any = entry
            if isinstance(owner, Obj) and owner.kind == "dict":
                value = choice(list(owner.sources))
            elif isinstance(owner, Obj) and ((owner.kind != "state" and how == "values") or self._holds_models(owner)):
                value = owner.attr("[]")
            pair = Tuple((key, value if isinstance(value, Obj) else entry))
            return {"keys": key, "items": pair, "values": value}[how]
        if "modules" in how or "children" in how:
            key, some = (id(iteration.node), id(owner), "layer", *iteration.given), iteration.given
            layer = made(key, lambda: Obj("layer", "m", info=owner, node=iteration.node, given=some))
            return Tuple((ClassName(layer), layer)) if how.startswith("named") else layer
        kind = "buffer" if "buffers" in how else "parameter"
        name = "some" if iteration.given else ""
        form = Form({Atom(kind, canonical(owner) if isinstance(owner, Obj) else owner, name): {(): 1.0}}, live=True)
        return Tuple((ClassName(iteration), form)) if how.startswith("named") else form
