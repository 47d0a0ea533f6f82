"""What a walk of one function carries: its state, its events, and who an object is."""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.contents import inflow
from batchnorm.diagnosis.source.definitions import Class, ClassInfo, FunctionInfo
from batchnorm.diagnosis.source.interpreter.program import Program
from batchnorm.diagnosis.source.trace import Event, Mode, State, Summary, Test
from batchnorm.diagnosis.source.values import Atom, Const, External, Form, Obj, canonical, options, root, within

DEEPEST_CLASS = 6
OPAQUE = ("iteration", "zip", "list", "dict", "state", "layer", "key", "optimizer", "class attribute")


class Walk:
    """State of one function's walk."""

    def __init__(self, program: Program, info: FunctionInfo, depth: int) -> None:
        self.program, self.info, self.depth = program, info, depth
        self.state = State()
        self.summary = Summary()
        self.exits: list[State] = []
        self.loops: list[list[State]] = []  # the states at each `continue`
        self.broken: list[list[State]] = []  # and at each `break`, which ends no round
        self.loop_nodes: list[ast.AST] = []
        self.tests: list[Test] = []
        self.skipped: list[Test] = []  # what a `continue` above has sorted out
        self.returned: list[Test] = []  # and what a `return` has
        self.globals: set[str] = set()
        self.born: dict[Obj, tuple[Test, ...]] = {}  # the conditions that objects are made under
        self.pending: dict[Atom, tuple[ast.AST, Form, dict[str, Any]]] = {}
        self.entered: dict[Obj, Mode] = {}  # the modes inside of a `with` block of what was called last
        self.held: dict[Obj, Obj] = {}  # what an attribute was found to hold, and the attribute's owner
        self.read_through: dict[Obj, Obj] = {}  # a layer, and the attribute of a model that it was last read from
        self.several = False  # a name that stands for one of several objects is what a method is called on
        self.conditions = self.ranks = self.second = 0
        self.touches_tensors = info.module.touches_statistics

    def ev(self, node: ast.AST) -> Any:
        """The value of an expression."""
        raise NotImplementedError

    def read(self, base: Any, name: str, node: ast.AST) -> Any:
        """`base.name`."""
        raise NotImplementedError

    def invoke(self, node: ast.Call, target: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
        """Call a value."""
        raise NotImplementedError

    def apply(
        self, node: ast.Call, info: FunctionInfo, owner: Obj | None, args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        """Call a function of the linted files."""
        raise NotImplementedError

    def named_in(self, module: Any) -> Any:
        """What a name that is not known may stand for in a file."""
        raise NotImplementedError

    def bind(self, target: ast.AST, value: Any, node: ast.AST) -> None:
        """Give a name, an attribute, an element or several of them a value."""
        raise NotImplementedError

    def event(self, kind: str, node: ast.AST, obj: Obj | None = None, **data: Any) -> Event:
        """An event at a node, the same one each time the node is passed."""
        key = (kind, id(node), None if obj is None else id(obj))
        found = self.program.events.get(key)
        if found is None:
            found = Event(kind, node, self.info, obj, data)
            found.data["tests"] = tuple(self.tests) if "tests" not in data else data["tests"]
            found.data["returned"] = tuple(self.returned)
            found.data["loops"] = tuple(self.loop_nodes)
            found.data["conditional"] = self.conditions > 0
            found.data["no_grad"] = self.state.no_grad
            self.program.events[key] = found
        return found

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

    def class_of(self, obj: Obj) -> ClassInfo | None:
        """The class of an object, if all that flows into it agrees."""
        found = self.classes_of(obj)
        return found[0] if len(found) == 1 else None

    def classes_of(self, obj: Obj) -> list[ClassInfo]:
        """The classes of the linted files that an object may be of; worked out again once more has flowed."""
        held = self.program.classes.get(obj)
        if held is None or held[0] != Obj.flows:
            found: dict[ClassInfo, None] = {}
            self._classes(obj, found, set(), 0)
            held = self.program.classes[obj] = (Obj.flows, [*found])
        return held[1]

    def _classes(self, obj: Obj, found: dict[ClassInfo, None], seen: set[Obj], depth: int) -> None:
        if obj.kind == "wrapper" and isinstance(obj.info, Obj):
            self._classes(obj.info, found, seen, depth + 1)
        elif obj.kind in ("instance", "self") and isinstance(obj.info, ClassInfo):
            found[obj.info] = None
        elif depth <= DEEPEST_CLASS and obj.kind not in OPAQUE and obj not in seen:
            seen.add(obj)
            for option in (o for source in inflow(obj)[:8] for o in options(source)):
                if isinstance(option, Obj):
                    self._classes(option, found, seen, depth + 1)

    def slot_of(self, base: Obj, name: str) -> Any:
        """An attribute's slot, or the one value that is known to be in it."""
        slot = base.attr(name)
        info = base.info if base.kind in ("self", "instance") and isinstance(base.info, ClassInfo) else None
        flows = inflow(slot) if info is not None else slot.sources
        if base.kind == "global" and (shared := _shared(base, name)) is not None:
            return shared
        if len(flows) == 1:
            (only,) = flows
            held = isinstance(only, Obj) and only.kind in ("list", "dict", "iteration", "zip", "state")
            return only if held or isinstance(only, Const | External | Class) else slot
        literal = len(flows) == 2 and all(isinstance(f, Const) for f in flows)
        return None if literal and info is not None and name == "training" else slot

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

    def is_parameter(self, obj: Any) -> bool:
        """Whether an unknown object is called as the parameters of a loop are."""
        return isinstance(obj, Obj) and obj.kind in ("attribute", "parameter") and obj.name in ("[]", "param", "p")

    def unknown_tensor(self, obj: Obj) -> Form:
        """An object that is used as a tensor."""
        return Form({Atom("element", obj): {(): 1.0}}, live=True)


def _shared(base: Obj, name: str) -> Obj | None:
    """The global name of what an attribute of a global object holds: of `attack.model`, `model`."""
    made = base.sources[0] if len(base.sources) == 1 else None
    held = made.attrs[name].sources if isinstance(made, Obj) and made.kind == "instance" and name in made.attrs else []
    slots = base.info.slots.values() if len(held) == 1 and isinstance(canonical(held[0]), Obj) else ()
    return next((s for s in slots if [canonical(o) for o in s.sources] == [canonical(held[0])]), None)
