"""What the interpreter asks of objects: who they are, what mode they are in, what their elements are."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.contents import inflow
from batchnorm.diagnosis.source.names import WITHOUT_GRADIENTS, is_layer, last
from batchnorm.diagnosis.source.project import ClassInfo, FunctionInfo
from batchnorm.diagnosis.source.trace import EVAL, SWITCHED, TRAIN, UNKNOWN, Context, Event, Mode, State, Summary
from batchnorm.diagnosis.source.values import (
    STATISTICS,
    Atom,
    Choice,
    Class,
    ClassName,
    Const,
    External,
    Form,
    Obj,
    Tuple,
    choice,
    options,
)

if TYPE_CHECKING:
    from batchnorm.diagnosis.source.interpreter import Program

ITERATIONS = (
    "parameters",
    "named_parameters",
    "buffers",
    "named_buffers",
    "modules",
    "named_modules",
    "children",
    "named_children",
)
OPAQUE = ("iteration", "zip", "list", "dict", "state", "layer", "key", "optimizer", "class attribute")


class Objects:
    """State of one function's walk, and questions about objects."""

    without_gradients = WITHOUT_GRADIENTS

    def __init__(self, program: Program, info: FunctionInfo, depth: int) -> None:
        self.program, self.info, self.depth = program, info, depth
        self.state = State()
        self.summary = Summary()
        self.exits: list[State] = []
        self.loops: list[list[State]] = []
        self.loop_nodes: list[ast.AST] = []
        self.tests: list[ast.expr] = []
        self.globals: set[str] = set()
        self.closure: dict[str, FunctionInfo] = {}
        self.pending: dict[Atom, tuple[ast.AST, Form, Form, dict[str, Any]]] = {}
        self.held: dict[Obj, Obj] = {}  # what an attribute was found to hold, and the attribute's owner
        self.read_through: dict[Obj, Obj] = {}  # a layer, and the attribute of a model that it was last read from
        self.conditions = self.ranks = self.second = self.depth_of_loops = 0
        self.touches_tensors = info.module.touches_statistics

    # The interpreter's, which the questions ask in turn.

    def ev(self, node: ast.AST) -> Any:
        """The value of an expression."""
        raise NotImplementedError

    def read(self, base: Any, name: str, node: ast.AST) -> Any:
        """`base.name`."""
        raise NotImplementedError

    def bind_attribute(self, target: ast.Attribute, value: Any, node: ast.AST) -> None:
        """`x.name = value`."""
        raise NotImplementedError

    # Events
    # ------------------------------------------------------------------------------------------------------------

    def event(self, kind: str, node: ast.AST, obj: Obj | None = None, **data: Any) -> Event:
        """An event at a node, the same one each time the node is passed."""
        key = (kind, id(node), None if obj is None else id(obj))
        found = self.program.events.get(key)
        if found is None:
            found = Event(kind, node, self.info, obj, data)
            found.data["tests"] = tuple(self.tests) if "tests" not in data else data["tests"]
            found.data["loops"] = tuple(self.loop_nodes)
            found.data["conditional"] = self.conditions > 0
            found.data["no_grad"] = self.state.no_grad
            self.program.events[key] = found
        return found

    def situation(self, obj: Obj, mode: Mode, *, no_grad: bool | None = None, layers: Mode | None = None) -> Context:
        """What holds at this point for an object."""
        frozen = self.moving(obj)
        half = next((v for o, v in self.state.half.items() if self.inside(o, obj) or self.inside(obj, o)), None)
        return Context(
            obj,
            mode,
            layers if layers is not None else self.layers_mode(obj),
            no_grad,
            self.second > 0,
            self.ranks > 0,
            self.conditions > 0,
            frozen,
            half,
            any(self.inside(o, obj) or self.inside(obj, o) for o in self.state.loaded),
            self.info,
        )

    def moving(self, obj: Obj) -> tuple[tuple[Obj, ast.AST, FunctionInfo], ...]:
        """The parts of an object that are frozen by requires_grad and by nothing else."""
        found = []
        for part, (node, function) in self.state.frozen.items():
            mode, layers = self.mode(part), self.layers_mode(part)
            if (
                self.inside(part, obj)
                and (mode is None or mode.value in (TRAIN, SWITCHED) or part is obj)
                and (layers is None or layers.value == TRAIN)
            ):
                found.append((part, node, function))
        return tuple(found)

    def inside(self, inner: Obj, outer: Obj) -> bool:
        """Whether an object is another or a part of it, by its path or because it was put there."""
        at: Obj | None = inner
        for _ in range(8):
            if at is None or within(at, outer):
                return at is not None
            top: Obj = at
            while top.kind == "attribute" and top.parent is not None:
                top = canonical(top.parent)
            at = self.held.get(top)
        return False

    # Modes
    # -------------------------------------------------------------------------------------------------------------

    def mode(self, obj: Obj) -> Mode | None:
        """The mode of an object, its own or its owner's; None where only a caller knows."""
        at: Obj | None = canonical(obj)
        for _ in range(12):
            if at is None:
                break
            if at in self.state.modes:
                return self.state.modes[at]
            if at.kind == "attribute" and at.name[:1] == "[" and at.parent is not None:
                each = at.parent.attrs.get("[]")
                if each in self.state.modes:
                    return self.state.modes[each]
            at = (
                canonical(at.parent)
                if at.parent is not None and at.kind in ("attribute", "batch norm")
                else self.held.get(at)
            )
        return None

    def layers_mode(self, obj: Obj) -> Mode | None:
        """The mode of an object's batch norm layers, where it was set apart from the object's."""
        at: Obj | None = canonical(obj)
        while at is not None:
            if at in self.state.layers:
                return self.state.layers[at]
            at = canonical(at.parent) if at.parent is not None and at.kind == "attribute" else None
        return None

    def set_mode(self, value: Any, mode: str, node: ast.AST) -> None:
        """`x.train()` and `x.eval()`, for all that x can be."""
        for obj in {id(o): o for o in (canonical(o) for o in objects_in(value))}.values():
            if obj.kind == "layer":
                self.set_layers(obj.info, mode, node, obj)
                continue
            if obj.kind == "batch norm":
                self.set_layers(obj.parent, mode, node, obj)
                continue
            event = self.event("mode", node, obj, mode=mode)
            layers = self.layers_mode(obj)
            event.seen(self.situation(obj, self.mode(obj) or Mode(UNKNOWN), layers=layers))
            self.switch(obj, Mode(mode, node, self.info))

    def switch(self, obj: Obj, mode: Mode) -> None:
        """A mode for an object and its parts; train() undoes what was frozen inside, unless its class sees to that."""
        own = mode.value == TRAIN and self.sees_to_modes(obj)
        if obj.kind == "attribute" and obj.name == "[]" and obj.parent is not None:
            for name, slot in obj.parent.attrs.items():
                if name[:1] == "[" and slot is not obj:
                    self.state.modes.pop(slot, None)
        for held in [o for o in self.state.modes if o is not obj and within(o, obj)]:
            self._undone(held, obj, mode) if not own else None
            del self.state.modes[held]
        for held in [o for o in self.state.layers if within(o, obj)]:
            if mode.value == TRAIN and self.state.layers[held].value == EVAL and not own:
                if mode.node is not None:
                    self.event("unfreeze", mode.node, obj, frozen=self.state.layers[held])
                self.state.layers[held] = mode
            else:
                del self.state.layers[held]
        if own:
            self.state.layers[obj] = Mode(UNKNOWN, mode.node, mode.function)
        self.state.modes[obj] = mode
        if not own:
            self.set_parts(obj, mode)

    def sees_to_modes(self, obj: Obj) -> bool:
        """Whether an object's class has a train() of its own."""
        info = self.class_of(obj)
        return info is not None and info.is_module and info.method("train") is not None

    def _undone(self, part: Obj, obj: Obj, mode: Mode) -> None:
        """A part that was put in eval where its owner was made, or together with its weights, trains again."""
        frozen = self.state.modes[part]
        if mode.value != TRAIN or mode.node is None or frozen.value != EVAL or frozen.function is None:
            return
        owner = frozen.function.owner
        made = frozen.function.name == "__init__" and owner is not None and owner.is_module
        if made or any(f is frozen.function and self.inside(o, part) for o, (_, f) in self.state.frozen.items()):
            self.event("part trains again", mode.node, part, frozen=frozen, of=obj)

    def undo(self, obj: Obj, mode: Mode) -> None:
        """What a train() inside a function undoes, where the function leaves another mode behind."""
        for part, held in list(self.state.modes.items()):
            if held.value == EVAL and part is not obj and self.inside(part, obj):
                self._undone(part, obj, mode)

    def set_parts(self, obj: Obj, mode: Mode, depth: int = 0) -> None:
        """A mode for the objects that were assigned to an object's attributes."""
        if depth > 2 or (obj.kind == "self" and not (isinstance(obj.info, ClassInfo) and obj.info.is_module)):
            return
        for (owner, _), value in list(self.state.heap.items()):
            if owner is obj:
                for part in map(canonical, objects_in(value)):
                    if part in self.state.modes and part is not obj:
                        self._undone(part, obj, mode)
                        self.state.modes[part] = mode
                        self.set_parts(part, mode, depth + 1)

    def set_layers(self, owner: Any, mode: str, node: ast.AST, layer: Obj) -> None:
        """A mode for batch norm layers alone."""
        for obj in objects_in(owner):
            obj = canonical(obj)
            if layer.kind == "layer":
                # Not told apart by their class: some of the model's layers, which ones is not known.
                if mode == EVAL:
                    self.state.layers[obj] = Mode(UNKNOWN, node, self.info)
                continue
            self.event("layer mode", node, obj, mode=mode)
            self.state.layers[obj] = Mode(mode, node, self.info)

    def forget_modes(self, values: list[Any]) -> None:
        """Models that an unknown function was given may come back in any mode."""
        for value in values:
            for obj in objects_in(value):
                obj = canonical(obj)
                if obj.kind in OPAQUE or (
                    obj.kind == "self" and not (isinstance(obj.info, ClassInfo) and obj.info.is_module)
                ):
                    continue
                if obj in self.state.modes or obj.kind in (
                    "parameter",
                    "attribute",
                    "global",
                    "instance",
                    "external",
                    "result",
                    "copy",
                ):
                    self.state.modes[obj] = Mode(UNKNOWN)

    # What is what
    # -------------------------------------------------------------------------------------------------------

    def class_of(self, obj: Obj, depth: int = 0) -> ClassInfo | None:
        """The class of an object, if all that flows into it agrees."""
        if obj.kind == "wrapper":
            return self.class_of(obj.info, depth + 1) if isinstance(obj.info, Obj) else None
        if isinstance(obj.info, ClassInfo) and obj.kind in ("instance", "self"):
            return obj.info
        if depth > 6 or obj.kind in OPAQUE:
            return None
        found: list[ClassInfo | None] = []
        for source in inflow(obj)[:8]:
            for option in options(source):
                if isinstance(option, Obj) and option is not obj:
                    found.append(self.class_of(option, depth + 1))
        classes = {id(c): c for c in found if c is not None}
        return next(iter(classes.values())) if len(classes) == 1 else None

    def slot_of(self, base: Obj, name: str) -> Any:
        """An attribute's slot, or the one value that is known to be in it."""
        slot = base.attr(name)
        info = base.info if base.kind in ("self", "instance") and isinstance(base.info, ClassInfo) else None
        flows = inflow(slot) if info is not None else slot.sources
        if len(flows) == 1:
            (only,) = flows
            if isinstance(only, Const) or (
                isinstance(only, Obj) and only.kind in ("list", "dict", "iteration", "zip", "state")
            ):
                return only
            if isinstance(only, External | Class):
                return only
        elif flows and all(isinstance(f, Const) for f in flows) and len(flows) <= 2 and info is not None:
            return None if name == "training" else slot
        return slot

    def statistic(self, owner: Obj, name: str) -> Form:
        """A running statistic as a tensor."""
        self.read_through[root(owner)] = owner
        return Form({Atom("statistic", root(owner), name): {(): 1.0}}, live=True)

    def remembered_statistic(self, owner: Obj, name: str) -> Form | None:
        """`self.running_mean` of a class that keeps a layer's buffer under that name."""
        if not isinstance(owner.info, ClassInfo) or owner.kind != "self" or owner.info.is_module:
            return None
        for source in owner.attr(name).sources:
            if isinstance(source, Form) and source.live:
                return Form(dict(source.terms), live=True)
        return None

    def unknown_tensor(self, obj: Obj) -> Form:
        """An object that is used as a tensor."""
        return Form({Atom("element", obj): {(): 1.0}}, live=True)

    # Containers and iteration
    # -------------------------------------------------------------------------------------------

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
            if (
                isinstance(key.value, str)
                and key.value in STATISTICS
                and base.kind == "attribute"
                and base.name == "_buffers"
                and base.parent
            ):
                return self.statistic(base.parent, key.value)
            known = self.state.heap.get((base, f"[{key.value}]"))
            if known is not None:
                return known
            if isinstance(key.value, int) and base.kind == "iteration":
                return self.element(base)
            slot = base.attrs.get(f"[{key.value}]")
            if slot is not None and base.kind == "dict":
                return slot.sources[0] if len(slot.sources) == 1 else slot
        if base.kind in ("list", "dict"):
            found = choice(list(base.sources))
            if found is not None and len(options(found)) == 1:
                return found
        if isinstance(key, Const):
            return base.attr(f"[{key.value}]")
        slot = base.attr("[]")
        for source in base.sources[:8]:
            slot.flows_from(source) if base.kind in ("list", "dict") else None
        return slot

    def element(self, value: Any) -> Any:
        """What a loop over a value gives."""
        if isinstance(value, Tuple):
            return choice(list(value.items))
        if isinstance(value, Choice):
            found = [self.element(v) for v in value.options]
            # Of the parameters of one of several models: those of the first stand for all.
            return found[0] if found and all(isinstance(f, Form) for f in found) else choice(found)
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
        if value.kind == "state":
            return self.program.obj((id(value), "key"), lambda: Obj("key", "key", info=value))
        if value.kind in ("list", "dict"):
            return choice(list(value.sources)) if value.kind == "list" else None
        if value.kind in ("attribute", "parameter", "global"):
            kinds = [
                s
                for s in inflow(value)
                if isinstance(s, Obj) and s.kind in ("iteration", "zip", "enumerate", "list", "state")
            ]
            if len(kinds) == 1:
                return self.element(kinds[0])
        return value.attr("[]")

    def _iterated(self, owner: Any, how: str, iteration: Obj) -> Any:
        made = self.program.obj
        if how in ("keys", "items", "values"):
            key = made((id(owner), "key"), lambda: Obj("key", "key", info=owner))
            entry = Form({Atom("entry", owner, ""): {(): 1.0}}, live=True)
            if isinstance(owner, Obj) and owner.kind == "dict":
                value = choice(list(owner.sources))
            elif isinstance(owner, Obj) and owner.kind == "state":
                value = entry
            else:
                value = owner.attr("[]") if isinstance(owner, Obj) and how == "values" else entry
            return {
                "keys": key,
                "items": Tuple((key, entry if not isinstance(value, Obj) else value)),
                "values": value,
            }[how]
        if "modules" in how or "children" in how:
            layer = made(
                (id(iteration.node), id(owner), "layer"), lambda: Obj("layer", "m", info=owner, node=iteration.node)
            )
            return Tuple((ClassName(layer), layer)) if how.startswith("named") else layer
        kind = "buffer" if "buffers" in how else "parameter"
        form = Form({Atom(kind, canonical(owner) if isinstance(owner, Obj) else owner, ""): {(): 1.0}}, live=True)
        return Tuple((ClassName(iteration), form)) if how.startswith("named") else form

    # Tests
    # -------------------------------------------------------------------------------------------------------------

    def narrow(self, test: ast.AST) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a test says of names, in its branch and in the other: `isinstance(m, BatchNorm2d)` makes m a layer."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inside, outside = self.narrow(test.operand)
            return outside, inside
        if isinstance(test, ast.BoolOp):
            found: dict[str, Any] = {}
            for value in test.values:
                found.update(self.narrow(value)[0])
            return (found, {}) if isinstance(test.op, ast.And) or len(found) == 1 else ({}, {})
        name = self._tested_layer(test)
        if name is None:
            return {}, {}
        value = self.state.env.get(name)
        if isinstance(value, Obj):
            owner = value.info if value.kind == "layer" else value
            narrowed = self.program.obj(
                (id(test), id(value)),
                lambda: Obj("batch norm", name, parent=owner if isinstance(owner, Obj) else None, info=value),
            )
            return {name: narrowed}, {}
        return {}, {}

    def _tested_layer(self, test: ast.AST) -> str | None:
        """The name that a test finds to be batch norm, by its class or by its class's name."""
        if (
            isinstance(test, ast.Call)
            and isinstance(test.func, ast.Name)
            and test.func.id == "isinstance"
            and len(test.args) == 2
        ):
            subject, classes = test.args
            names = classes.elts if isinstance(classes, ast.Tuple) else [classes]
            if isinstance(subject, ast.Name) and names and all(self._is_layer_class(n) for n in names):
                return subject.id
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            left, right = test.left, test.comparators[0]
            if (
                isinstance(test.ops[0], ast.In)
                and isinstance(left, ast.Constant)
                and isinstance(left.value, str)
                and "norm" in left.value.lower()
                and "batch" in left.value.lower()
            ):
                return self._named(right)
            if (
                isinstance(left, ast.Call)
                and isinstance(left.func, ast.Attribute)
                and left.func.attr == "find"
                and left.args
            ):
                word = left.args[0]
                if isinstance(word, ast.Constant) and isinstance(word.value, str) and "batchnorm" in word.value.lower():
                    return self._named(left.func.value)
            if (
                isinstance(test.ops[0], ast.Eq | ast.Is)
                and isinstance(left, ast.Call)
                and isinstance(left.func, ast.Name)
                and left.func.id == "type"
            ):
                subject = left.args[0] if left.args else None
                if isinstance(subject, ast.Name) and self._is_layer_class(right):
                    return subject.id
        return None

    def _is_layer_class(self, node: ast.AST) -> bool:
        value = self.ev(node)
        for option in options(value):
            if isinstance(option, External) and is_layer(option.name):
                return True
            if isinstance(option, Class) and any(
                isinstance(a, External) and is_layer(a.name) for a in option.info.ancestors()
            ):
                return True
        return False

    def _named(self, node: ast.AST) -> str | None:
        """Of `name` in `name = m.__class__.__name__`, m."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            node = node.func.value
        value = self.ev(node)
        if isinstance(value, ClassName):
            for name, held in self.state.env.items():
                if held is value.obj:
                    return name
        return None

    # Tensors
    # -----------------------------------------------------------------------------------------------------------

    def written(self, node: ast.AST, target: Form, value: Form, **data: Any) -> None:
        """A buffer, a parameter or a state's entry gets a new content; the last write of a statement counts."""
        for atom in target.terms:
            kept = Form(dict(value.terms), value.live, value.mixed, value.converted, value.divided)
            self.pending[atom] = (node, target, kept, data)
            break

    def flush(self) -> None:
        """Turn the statement's writes into events."""
        for atom, (node, _, value, data) in self.pending.items():
            owner = self.read_through.get(atom.owner, atom.owner) if isinstance(atom.owner, Obj) else None
            event = self.event("write", node, owner, atom=atom, values=[], **data)
            version = self.state.version
            now = tensors.frozen_form(value, version)
            current = atom._replace(version=version)
            mode = self.mode(owner) if owner is not None else None
            event.data["values"].append((now, current, mode))
            if owner is not None:
                event.seen(self.situation(owner, mode or Mode(UNKNOWN)))
            if len(self.summary.writes) < 40:
                self.summary.writes.append((event, atom, list(now.terms)))
        self.pending.clear()

    def gradients(self, target: Any, value: Any, node: ast.AST) -> None:
        """`requires_grad = False` on a parameter, a layer or a model."""
        off = isinstance(value, Const) and value.value is False
        owners: list[Obj] = []
        if isinstance(target, Form):
            owners = [a.owner for a in target.terms if a.kind in ("parameter", "element") and isinstance(a.owner, Obj)]
        else:
            owners = [o for o in objects_in(target)]
        for owner in owners:
            if owner.kind == "attribute" and owner.name in ("weight", "bias") and owner.parent is not None:
                owner = owner.parent
            if owner.kind == "batch norm" and owner.parent is None:
                owner_model = owner
            else:
                owner_model = (
                    canonical(owner.parent)
                    if owner.kind == "batch norm" and owner.parent is not None
                    else canonical(owner)
                )
            child = owner_model.kind == "layer"
            if child:
                if not self._whole_child(owner_model, target):
                    continue
                owner_model = canonical(owner_model.info)
            layer = owner.kind == "batch norm"
            loop = self.loop_nodes[-1] if self.loop_nodes else None
            if off:
                chosen = loop is not None and bool(self.tests) and any(t in ast.walk(loop) for t in self.tests[-1:])
                event = self.event("freeze", node, owner_model, layer=layer, loop=loop)
                event.data["partial"] = event.data.get("partial", False) or chosen or (child and bool(self.tests))
                self.state.frozen[owner_model] = (node, self.info)
            elif loop is not None and self.tests and self._frozen_here(owner_model, loop):
                pass  # all but those that a test on the name lets through
            else:
                self.event("thaw", node, owner_model)
                self.state.frozen.pop(owner_model, None)
                self.summary.thawed.add(owner_model)

    def _whole_child(self, layer: Obj, target: Any) -> bool:
        """Whether a loop over children() freezes all that is in a child, chosen by its place or name."""
        call = layer.node
        return (
            isinstance(target, Form)
            and all(a.owner is layer for a in target.terms)
            and isinstance(layer.info, Obj)
            and isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and "children" in call.func.attr
            and not any(
                isinstance(n, ast.Name) and n.id in ("isinstance", "type") for t in self.tests for n in ast.walk(t)
            )
        )

    def _frozen_here(self, owner: Obj, loop: ast.AST) -> bool:
        """Whether a loop freezes all parameters first and then thaws some of them."""
        held = self.state.frozen.get(owner)
        if held is None:
            return False
        for event in self.program.events.values():
            if event.kind == "freeze" and event.node is held[0] and event.data.get("loop") is loop:
                event.data["partial"] = True
                return True
        return False

    def compared(self, node: ast.Compare, left: Any, rights: list[Any]) -> None:
        """`'bn' in name`, of a name in named_modules() or named_parameters()."""
        if (
            len(node.ops) == 1
            and isinstance(node.ops[0], ast.In | ast.NotIn)
            and isinstance(left, Const)
            and isinstance(left.value, str)
        ) and isinstance(rights[0], ClassName):
            self.event("name", node, None, word=left.value, of=rights[0].obj)

    def context(self, node: ast.AST) -> tuple[bool | None] | None:
        """Whether a context switches gradients off; None if it is about something else."""
        target = node.func if isinstance(node, ast.Call) else node
        value = self.ev(target) if isinstance(target, ast.Name | ast.Attribute) else None
        if isinstance(value, External):
            if value.name in WITHOUT_GRADIENTS:
                return (True,)
            if value.name == "torch.enable_grad":
                return (False,)
            if last(value.name) == "set_grad_enabled" and isinstance(node, ast.Call):
                said = self.ev(node.args[0]) if node.args else None
                return (not said.value,) if isinstance(said, Const) else (None,)
        return None


def canonical(obj: Any) -> Any:
    """The object behind wrappers."""
    for _ in range(8):
        if not isinstance(obj, Obj) or obj.kind != "wrapper":
            break
        obj = obj.info
    return obj


def root(obj: Obj) -> Obj:
    """An attribute's one source, so that `self.model` and the `model` it was made from are the same."""
    for _ in range(8):
        obj = canonical(obj)
        if obj.kind == "attribute" and obj.parent is not None:
            if (
                len(obj.sources) == 1
                and isinstance(obj.sources[0], Obj)
                and obj.sources[0].kind not in ("list", "dict")
            ):
                obj = obj.sources[0]
                continue
            parent = root(obj.parent)
            return obj if parent is obj.parent else parent.attr(obj.name)
        break
    return obj


def within(inner: Obj, outer: Obj) -> bool:
    """Whether an object is another, or a part of it."""
    at: Obj | None = inner
    for _ in range(8):
        if at is None:
            return False
        if at is outer:
            return True
        at = canonical(at.parent) if at.kind == "attribute" else None
    return False


def objects_in(value: Any) -> list[Obj]:
    """The objects that a value can be, of a list all elements."""
    found: list[Obj] = []
    for option in options(value):
        if isinstance(option, Tuple):
            for item in option.items:
                found.extend(objects_in(item))
        elif isinstance(option, Obj):
            found.append(option)
    return found
