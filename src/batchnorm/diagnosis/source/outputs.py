"""Where the output of a forward goes within its function: into a loss that is run backward, or into a measure alone."""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from batchnorm.diagnosis.source.syntax import dotted, name_of, variables

DETACHES = ("detach", "item", "numpy", "tolist", "argmax", "detach_", "data", "long", "bool", "argsort", "grad")
INPUTS_GRADIENT = ("torch.autograd.grad", "autograd.grad", "grad")


class Fate(NamedTuple):
    """What becomes of an output: `leaves` is returned or kept with its gradient, `feeds` reaches a loss as a value."""

    trains: bool  # its gradient is run backward
    feeds: bool
    leaves: bool
    asks: bool  # that backward is for the gradient of the forward's own input, and no step follows


class _Flow(NamedTuple):
    """The forwards that a value is computed from: those that a gradient reaches, and all."""

    live: frozenset[int] = frozenset()
    all: frozenset[int] = frozenset()

    def __or__(self, other: object) -> _Flow:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Flow(self.live | other.live, self.all | other.all) if isinstance(other, _Flow) else self

    def cut(self) -> _Flow:
        return _Flow(frozenset(), self.all)


NOTHING = _Flow()


class Outputs:
    """One walk through a function, in the order of its statements; loops are run twice, branches are joined."""

    def __init__(self, body: Sequence[ast.stmt], forwards: Iterable[ast.AST], backward: frozenset[str]) -> None:
        self.forwards = {id(n): n for n in forwards}
        self.backward = backward
        self.names: dict[str, _Flow] = {}
        self.trained: set[int] = set()
        self.fed: set[int] = set()
        self.left: set[int] = set()
        self.asked: set[int] = set()
        self.stepped: set[int] = set()
        self.latest: frozenset[int] = frozenset()
        self.inputs = {key: variables(node) for key, node in self.forwards.items()}
        self.captured = {
            n for s in body for f in ast.walk(s) if isinstance(f, ast.FunctionDef | ast.Lambda) for n in variables(f)
        }
        self.without_gradients = 0
        self.block(body)

    def fate(self, node: ast.AST) -> Fate:
        """The fate of one forward's output."""
        key = id(node)
        asks = key in self.asked and key not in self.stepped
        return Fate(key in self.trained, key in self.fed, key in self.left, asks)

    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return
        if isinstance(node, ast.Assign):
            flow = self.ev(node.value)
            for target in node.targets:
                self.bind(target, flow, node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            flow = self.ev(node.value) if node.value is not None else NOTHING
            self.bind(node.target, flow | self.ev(node.target) if isinstance(node, ast.AugAssign) else flow, None)
        elif isinstance(node, ast.Return):
            self.left |= self.ev(node.value).live if node.value is not None else frozenset()
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            for _ in range(2):
                if isinstance(node, ast.While):
                    self.ev(node.test)
                else:
                    self.bind(node.target, self.ev(node.iter), None)
                self.block(node.body)
            self.block(node.orelse)
        elif isinstance(node, ast.If):
            self.ev(node.test)
            self.branches([node.body, node.orelse])
        elif isinstance(node, ast.With | ast.AsyncWith):
            quiet = 0
            for item in node.items:
                context = item.context_expr
                flow = self.ev(context)
                named = name_of(context.func if isinstance(context, ast.Call) else context)
                quiet += named in ("no_grad", "inference_mode")
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, flow, None)
            self.without_gradients += quiet
            self.block(node.body)
            self.without_gradients -= quiet
        elif isinstance(node, ast.Try):
            self.branches([[*node.body, *node.orelse], *(h.body for h in node.handlers)])
            self.block(node.finalbody)
        elif isinstance(node, ast.Match):
            self.branches([case.body for case in node.cases])
        else:
            for child in ast.iter_child_nodes(node):
                self.ev(child)

    def branches(self, bodies: list[list[ast.stmt]]) -> None:
        before, after = self.names, dict[str, _Flow]()
        for body in bodies:
            self.names = dict(before)
            self.block(body)
            for name, flow in self.names.items():
                after[name] = after[name] | flow if name in after else flow
        self.names = after

    def bind(self, target: ast.AST, flow: _Flow, value: ast.AST | None) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = flow
            self.left |= flow.live if target.id in self.captured else frozenset()
        elif isinstance(target, ast.Tuple | ast.List):
            same = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for at, inner in enumerate(target.elts):
                self.bind(inner, self.ev(value.elts[at]) if same and isinstance(value, ast.Tuple) else flow, None)
        elif isinstance(target, ast.Attribute):
            if target.attr != "data":
                self.left |= flow.live
                self.names[dotted(target)] = flow
        elif isinstance(target, ast.Subscript | ast.Starred):
            self.bind(target.value, flow | self.ev(target.value), None)

    def ev(self, node: ast.AST) -> _Flow:
        """What a value is computed from."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, NOTHING)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Attribute):
            if node.attr == "grad" and isinstance(node.value, ast.Name):
                self.asked.update(key for key in self.latest if node.value.id in self.inputs[key])
            flow = self.names.get(dotted(node), NOTHING) | self.ev(node.value)
            return flow.cut() if node.attr in DETACHES else flow
        if isinstance(node, ast.Lambda | ast.Constant):
            return NOTHING
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for generator in node.generators:
                self.bind(generator.target, self.ev(generator.iter), None)
        flow = NOTHING
        for child in ast.iter_child_nodes(node):
            flow |= self.ev(child)
        if isinstance(node, ast.Yield | ast.YieldFrom):
            self.left |= flow.live
        return flow.cut() if isinstance(node, ast.Compare) else flow

    def call(self, node: ast.Call) -> _Flow:
        func = node.func
        given = NOTHING
        for argument in (*node.args, *(k.value for k in node.keywords)):
            given |= self.ev(argument)
        owner = self.ev(func.value) if isinstance(func, ast.Attribute) else NOTHING
        name = name_of(func)
        if id(node) in self.forwards:
            own = frozenset((id(node),))
            return _Flow(given.live | (frozenset() if self.without_gradients else own), given.all | own)
        if "backward" in name or name in self.backward:
            flow = owner | given
            self.trained |= flow.live
            self.fed |= flow.all
            self.latest = flow.live
        elif name == "grad" and dotted(func) in INPUTS_GRADIENT:
            inner = any(k.arg == "create_graph" for k in node.keywords)
            asked = variables(*node.args[1:], *(k.value for k in node.keywords))
            if not inner:
                self.trained |= given.live
                self.asked.update(key for key in given.live if not asked.isdisjoint(self.inputs[key]))
                return given.cut()
        elif name in ("step", "minimize"):
            self.stepped |= self.latest
            self.trained |= given.live
            self.fed |= given.all
        elif name == "zero_grad":
            self.latest = frozenset()
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id in self.names:
            self.names[func.value.id] = owner | given  # losses.append(loss)
        flow = owner | given
        return flow.cut() if name in DETACHES and name != "grad" else flow
