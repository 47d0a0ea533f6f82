"""What is written, and what runs forward: `model(x)`, in the mode that is known here or that a caller knows."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import ClassInfo
from batchnorm.diagnosis.source.interpreter.narrowing import Narrowing
from batchnorm.diagnosis.source.interpreter.walk import OPAQUE
from batchnorm.diagnosis.source.names import made_by
from batchnorm.diagnosis.source.syntax import method_of, variables
from batchnorm.diagnosis.source.trace import (
    EVAL,
    MOST_USES,
    SLOTS,
    UNKNOWN,
    Event,
    Freeze,
    Mode,
    Test,
    Use,
    freeze,
)
from batchnorm.diagnosis.source.values import (
    VOLATILE,
    ClassName,
    Const,
    Form,
    Obj,
    canonical,
    objects_in,
    options,
)

MOST_INPUTS = 8  # of a forward
MEASURED = "running statistics"  # where an object's heap says whether they were reset


class Forwards(Narrowing):
    """Writes of buffers, parameters, entries of states and requires_grad; forwards."""

    def written(self, node: ast.AST, target: Form, value: Form, **data: Any) -> None:
        """A buffer, a parameter or a state's entry gets a new content; the last write of a statement counts."""
        for atom in target.terms:
            self.pending[atom] = (node, replace(value, terms=dict(value.terms)), data)
            break

    def flush(self) -> None:
        """Turn the statement's writes into events."""
        for atom, (node, value, data) in self.pending.items():
            owner = self.read_through.get(atom.owner, atom.owner) if isinstance(atom.owner, Obj) else None
            event = self.event("write", node, owner, atom=atom, values=[], **data)
            now, current = tensors.frozen_form(value, self.state.version), atom._replace(version=self.state.version)
            mode = self.mode(owner) if owner is not None else None
            event.data["values"].append((now, current, mode))
            if owner is not None:
                event.seen(self.situation(owner, mode or Mode(UNKNOWN)))
            if len(self.summary.writes) < 40:
                self.summary.writes.append((event, atom, list(now.terms)))
        self.pending.clear()

    def gradients(self, target: Any, value: Any, node: ast.AST) -> None:
        """`requires_grad = False` on a parameter, a layer or a model."""
        flag, asked = self._flag(node), self._asked(node, value)
        off = flag is not None or asked is not None or (isinstance(value, Const) and value.value in (False, 0))
        owners, partly = objects_in(target), asked is not None
        if isinstance(target, Form):
            atoms = [a for form in (target, *target.others) for a in form.terms]
            owners = [a.owner for a in atoms if a.kind in ("parameter", "element") and isinstance(a.owner, Obj)]
            partly |= any(a.name == "some" for a in atoms)
        for owner in owners:
            if owner.kind == "attribute" and owner.name == "bias":
                continue  # alone, as under a classifier that wants centred features
            if owner.kind == "attribute" and owner.name == "weight" and owner.parent is not None:
                owner = owner.parent
            layer = owner.kind == "batch norm"
            owner_model = canonical(owner.parent if layer and owner.parent is not None else owner)
            child = owner_model.kind == "layer"
            if child:
                if not self._whole_child(owner_model, target):
                    continue
                partly |= bool(owner_model.given)
                owner_model = canonical(owner_model.info)
            loop = self.loop_nodes[-1] if self.loop_nodes else None
            if off:
                within = set(map(id, ast.walk(loop))) if loop is not None else set()
                chosen = partly or any(id(t.node) in within for t in (*self.tests[-1:], *self.skipped))
                tests = (*self.tests, *self.skipped, *(asked or ()), *([flag] if flag is not None else []))
                event = self.event("freeze", node, owner_model, layer=layer, loop=loop, tests=tests, flag=flag)
                event.data["partial"] = event.data.get("partial", False) or chosen or (child and bool(self.tests))
                self.froze({owner_model: Freeze(node, self.info, tests, flag=flag)})
                for at in within if isinstance(target, Form) else ():  # all were let through before, one by one
                    if self.program.events.pop(("thaw", at, id(owner_model)), None) is not None:
                        self.summary.thawed.discard(owner_model)
            elif child and owner_model in self.state.frozen and not isinstance(value, Const):
                pass  # some of the parts, if the caller says so
            elif loop is not None and self.tests and self._frozen_here(owner_model, loop):
                pass  # all but those that a test on the name lets through
            else:
                self.event("thaw", node, owner_model)
                self.state.frozen.pop(owner_model, None)
                self.summary.thawed.add(owner_model)

    def _flag(self, node: ast.AST) -> Test | None:
        """`p.requires_grad = on` and `= not off` of a parameter: frozen where the caller says so."""
        given = node.args[0] if isinstance(node, ast.Call) and node.args else getattr(node, "value", None)
        name = given.operand if isinstance(given, ast.UnaryOp) and isinstance(given.op, ast.Not) else given
        own = isinstance(name, ast.Name) and (name.id in self.info.params or name.id in self.info.closure)
        return Test(given, False) if own and isinstance(given, ast.expr) else None

    def _asked(self, node: ast.AST, value: Any) -> list[Test] | None:
        """`p.requires_grad = "head" in name`: what holds where it is frozen; None where that is no question."""
        given = node.args[0] if isinstance(node, ast.Call) and node.args else getattr(node, "value", None)
        if not isinstance(given, ast.expr):
            return None
        if any(isinstance(self.state.env.get(n), ClassName) for n in variables(given)):
            if isinstance(given, ast.IfExp):
                return [Test(given.test, isinstance(given.body, ast.Constant) and not given.body.value)]
            return [Test(given, False)]
        inside = (n for loop in self.loop_nodes[-1:] for n in ast.walk(loop) if isinstance(n, ast.Name))
        turned = isinstance(given, ast.Name) and any(n.id == given.id and isinstance(n.ctx, ast.Store) for n in inside)
        return [] if turned and {Const(False), Const(True)} == set(options(value)) else None

    def froze(self, frozen: dict[Obj, Freeze]) -> None:
        """Freezes; conditions that an object is made under too are none for it."""
        for obj, new in frozen.items():
            top: Obj | None = obj
            for _ in range(8):
                if top is not None and top not in self.born:
                    top = self.held.get(top) or canonical(top.parent)
            born = () if top is None else self.born.get(top, ())
            freeze(self.state.frozen, {obj: new._replace(tests=tuple(t for t in new.tests if t not in born))})

    def _whole_child(self, layer: Obj, target: Any) -> bool:
        """Whether a loop over children() freezes all that is in a child, chosen by its place or name."""
        if isinstance(target, Form) and not all(a.owner is layer for a in target.terms):
            return False
        by_class = not variables(*(t.node for t in self.tests)).isdisjoint(("isinstance", "type"))
        whole = "children" in method_of(layer.node) or bool(layer.given)
        return isinstance(layer.info, Obj) and whole and not by_class

    def _frozen_here(self, owner: Obj, loop: ast.AST) -> bool:
        """Whether a loop freezes all parameters first and then thaws some of them."""
        held = self.state.frozen.get(owner)
        if held is None:
            return False
        for event in self.program.events.values():
            if event.kind == "freeze" and event.node is held.node and event.data.get("loop") is loop:
                event.data["partial"] = True
                return True
        return False

    def forward(self, node: ast.Call, base: Obj, args: list[Any]) -> Any:
        """`model(x)`."""
        if base.kind in OPAQUE and base.kind != "layer":
            return None
        obj = canonical(base)
        if obj.kind == "self" and isinstance(obj.info, ClassInfo) and not obj.info.is_module:
            return None
        before = self.state.no_grad
        self.state.no_grad = True if any(v is VOLATILE for a in args for v in options(a)) else before
        output = self._forward(node, base, obj, args)
        self.state.no_grad = before
        return output

    def _forward(self, node: ast.Call, base: Obj, obj: Obj, args: list[Any]) -> Obj:
        event = self.event("forward", node, obj)
        event.data.setdefault("inputs", []).extend(args[:MOST_INPUTS])
        del event.data["inputs"][MOST_INPUTS:]
        if base.kind == "wrapper":
            event.data["wrapper"] = base.name
        mode = self.happens(event, obj)
        if mode is None or mode.value != EVAL:
            self.state.version += 1
        self.summary.moves = True
        self.given_models(node, obj, args)
        output = self.program.obj((node, "output"), lambda: Obj("output", "output", node=node))
        output.info = event  # of this round
        return output

    def given_models(self, node: ast.Call, obj: Obj, args: list[Any]) -> None:
        """A module whose forward is given other models, an attack or a loss: what it does with them."""
        info = self.class_of(obj) if obj.kind != "self" else None
        method = info.method("forward") if info is not None and info.is_module else None
        if method is not None and any(self._is_model(canonical(o)) for a in args for o in objects_in(a)):
            self.apply(node, method, obj, args, {})

    def _is_model(self, obj: Obj) -> bool:
        return any(c.is_module for c in self.classes_of(obj)) or (obj.kind == "external" and bool(made_by(*obj.info)))

    def happens(self, event: Event, obj: Obj) -> Mode | None:
        """An event whose meaning depends on the mode of an object, which is returned."""
        mode = self.mode(obj)
        self.measured(obj, mode, event)
        here = self.situation(obj, mode or Mode(UNKNOWN), no_grad=self.state.no_grad)
        if mode is not None:
            event.seen(here)
        known = mode is not None and (mode.node is not None or (mode.value == UNKNOWN and mode.test is not None))
        if mode is None or known:
            self._use(Use(event, mode, here))
        return mode

    def measured(self, obj: Obj, mode: Mode | None, event: Event) -> None:
        """A forward in eval mode with statistics that were reset, or one that moves them."""
        if not self.program.resets:
            return
        if mode is None or mode.value != EVAL or self.layers_mode(obj) is not None:
            self.remeasured(obj)
        for part, reset in self._resets(obj):
            for option in options(reset):
                if isinstance(option, Mode) and option.node is not None:
                    self.event("unmeasured", option.node, part, by=event)

    def remeasured(self, obj: Obj) -> None:
        """New statistics for an object and its parts."""
        for part, _ in [*self._resets(obj), (obj, None)] if self.program.resets else ():
            self.state.heap[part, MEASURED] = Const(True)

    def _resets(self, obj: Obj) -> list[tuple[Obj, Any]]:
        return [(o, v) for (o, name), v in self.state.heap.items() if name == MEASURED and self.inside(o, obj)]

    def _use(self, use: Use) -> None:
        here = use.here
        if use.mode is not None and here.obj.kind not in SLOTS:
            return
        modes = tuple(None if mode is None else mode.value for mode in (use.mode, here.layers))
        entered = None if here.at is None else id(here.at.node)
        key = (id(use.event), id(here.obj), here.no_grad, here.one_rank, modes, entered)
        if len(self.summary.uses) < MOST_USES:
            self.summary.uses.setdefault(key, use)
