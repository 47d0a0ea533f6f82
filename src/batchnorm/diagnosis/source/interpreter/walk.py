"""What a walk of one function carries: its state, its events, what it asks of the rest."""

from __future__ import annotations

import ast
from typing import Any

from batchnorm.diagnosis.source.interpreter.program import Program
from batchnorm.diagnosis.source.names import WITHOUT_GRADIENTS
from batchnorm.diagnosis.source.project import FunctionInfo
from batchnorm.diagnosis.source.trace import Event, State, Summary, Test
from batchnorm.diagnosis.source.values import Atom, Form, Obj


class Walk:
    """State of one function's walk."""

    without_gradients = WITHOUT_GRADIENTS

    def __init__(self, program: Program, info: FunctionInfo, depth: int) -> None:
        self.program, self.info, self.depth = program, info, depth
        self.state = State()
        self.summary = Summary()
        self.exits: list[State] = []
        self.loops: list[list[State]] = []
        self.loop_nodes: list[ast.AST] = []
        self.tests: list[Test] = []
        self.skipped: list[Test] = []  # what a `continue` above has sorted out
        self.returned: list[Test] = []  # and what a `return` has
        self.globals: set[str] = set()
        self.born: dict[Obj, tuple[Test, ...]] = {}  # the conditions that objects are made under
        self.pending: dict[Atom, tuple[ast.AST, Form, Form, dict[str, Any]]] = {}
        self.held: dict[Obj, Obj] = {}  # what an attribute was found to hold, and the attribute's owner
        self.read_through: dict[Obj, Obj] = {}  # a layer, and the attribute of a model that it was last read from
        self.conditions = self.ranks = self.second = self.depth_of_loops = 0
        self.touches_tensors = info.module.touches_statistics

    def ev(self, node: ast.AST) -> Any:
        """The value of an expression."""
        raise NotImplementedError

    def read(self, base: Any, name: str, node: ast.AST) -> Any:
        """`base.name`."""
        raise NotImplementedError

    def bind(self, target: ast.AST, value: Any, node: ast.AST) -> None:
        """Give a name, an attribute, an element or several of them a value."""
        raise NotImplementedError

    def bind_attribute(self, target: ast.Attribute, value: Any, node: ast.AST) -> None:
        """`x.name = value`."""
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
