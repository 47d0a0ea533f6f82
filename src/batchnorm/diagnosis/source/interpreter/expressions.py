"""The values of expressions; everything inside is evaluated, for what its calls do."""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
import builtins
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import (
    Class,
    ClassInfo,
    Function,
    FunctionInfo,
    Namespace,
    arithmetic,
    member,
)
from batchnorm.diagnosis.source.interpreter.calls import Calls
from batchnorm.diagnosis.source.trace import Test, join
from batchnorm.diagnosis.source.values import (
    MODELS,
    STATISTICS,
    Choice,
    ClassName,
    Const,
    External,
    Flag,
    Form,
    Obj,
    Tuple,
    choice,
    options,
    word,
)

SLICED = ("iteration", "list", "zip", "enumerate", "attribute")
PARTS = ("iteration", "list")
BUILTINS = frozenset(dir(builtins))


class Expressions(Calls):
    """The expressions."""

    def ev(self, node: ast.AST) -> Any:
        """The value of an expression; everything inside is evaluated, for what its calls do."""
        handler = getattr(self, "ev_" + type(node).__name__, None)
        if handler is not None:
            return handler(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.ev(child)
        return None

    def ev_Constant(self, node: ast.Constant) -> Any:
        return Const(node.value)

    def ev_Name(self, node: ast.Name) -> Any:
        return self.name(node.id)

    def name(self, name: str) -> Any:
        """What a name means here: local, of an outer function, of the module."""
        env = self.state.env
        if name in env:
            return env[name]
        if name in self.info.closure:
            return self.info.closure[name]
        outer = self.info.outer
        while outer is not None and not isinstance(outer.node, ast.Module):
            if name in outer.params:
                return outer.params[name]
            if name in outer.inner:
                return Function(outer.inner[name])
            outer = outer.outer
        module = self.info.module
        value = module.top(name)
        if value is not None and not (isinstance(value, Namespace) and name in module.assigned):
            return value
        if name in module.assigned:
            return module.slot(name)
        if name in ("self", "cls"):
            return None
        return External(name) if name in BUILTINS or module.stars else module.slot(name)

    def ev_Attribute(self, node: ast.Attribute) -> Any:
        return self.read(self.ev(node.value), node.attr, node)

    def read(self, base: Any, name: str, node: ast.AST) -> Any:
        """`base.name`."""
        if isinstance(base, Namespace) and name == "__dict__":
            return self.names_of(base.module)
        if isinstance(base, External | Namespace | Class):
            return member(base, name)
        if isinstance(base, Choice):
            return choice([self.read(option, name, node) for option in base.options])
        if isinstance(base, Form):
            return base if name in ("data", "T") else None
        if not isinstance(base, Obj):
            return base if isinstance(base, ClassName) and name == "__name__" else None
        if name == "module" and base.kind == "wrapper":
            return base.info
        if (base, name) in self.state.heap:
            value = self.state.heap[base, name]
            if isinstance(value, Obj) and value is not base and base.kind in ("instance", "result"):
                self.held.setdefault(value, base)
            return value
        if name in STATISTICS:
            known = self.remembered_statistic(base, name)
            return known if known is not None else self.statistic(base, name)
        if name == "training":
            mode = self.mode(base)
            return Flag(base, None if mode is None else mode.value)
        if name == "__class__":
            return ClassName(base, True)
        if name == "module" and base.kind in (*MODELS, "unknown"):
            # The model inside a wrapper; a class's own attribute of that name is one.
            own = isinstance(base.info, ClassInfo) and "module" in base.info.self_obj.attrs
            if not own or base.kind != "instance":
                return base
        if name == "data" and self.is_parameter(base):
            return self.unknown_tensor(base)
        if name in ("state_dict", "parameters"):
            return None
        info = self.class_of(base)
        if info is not None:
            found = info.method(name)
            if found is not None:
                return Function(found, base)
            constant = info.constant(name)
            slots = [o.attrs[name] for o in (base, info.self_obj) if name in o.attrs]
            if constant is not None and not any(slot.sources for slot in slots):
                return constant
        return self.slot_of(base, name)

    def ev_Subscript(self, node: ast.Subscript) -> Any:
        base, key = self.ev(node.value), self.ev(node.slice)
        first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
        if isinstance(first, ast.Slice) and base is not None and all(map(_sliced, options(base))):
            cut = first.upper is not None and first.lower is None
            # Some of the elements, or of a batch's samples, stand for all.
            return choice([self.some(o) if cut and o.kind == "iteration" else o for o in options(base)])
        if isinstance(first, ast.Slice) and isinstance(base, Obj) and base.kind == "external":
            key = Const(":")
        name = word([key], 0) if isinstance(node.value, ast.Attribute) and node.value.attr == "_modules" else None
        if name is not None and isinstance(base, Obj) and base.parent is not None:
            base = base.parent
            return self.read(base, name, node) if not name.isdecimal() else self.item(base, Const(int(name)))
        return self.item(base, key)

    def ev_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.ev(node.left), self.ev(node.right)
        if isinstance(left, Const) and isinstance(right, Const):
            return arithmetic(node.op, left, right)
        if isinstance(node.op, ast.Add) and isinstance(left, Tuple) and isinstance(right, Tuple):
            return Tuple((*left.items, *right.items))
        if isinstance(node.op, ast.BitOr) and self.entries(left) and self.entries(right):
            return self.dictionary(node, [(None, left), (None, right)])
        if isinstance(node.op, ast.Add) and all(isinstance(v, Obj) and v.kind in PARTS for v in (left, right)):
            return self.together(node, [left, right])
        # An unknown tensor meets one that is known to be one.
        if isinstance(left, Obj) and isinstance(right, Form) and isinstance(node.op, ast.Add | ast.Sub):
            left = self.unknown_tensor(left)
        if isinstance(right, Obj) and isinstance(left, Form) and isinstance(node.op, ast.Add | ast.Sub):
            right = self.unknown_tensor(right)
        return tensors.combine(node.op, left, right, self.state.version)

    def ev_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.ev(node.operand)
        if isinstance(node.op, ast.USub):
            if isinstance(value, Const):
                return self.info.module.static(node)
            return tensors.combine(ast.Sub(), Const(0.0), value, self.state.version)
        if isinstance(node.op, ast.Not) and isinstance(value, Const) and not isinstance(node.operand, ast.Attribute):
            return Const(not value.value)
        return None

    def ev_BoolOp(self, node: ast.BoolOp) -> Any:
        return choice([self.ev(v) for v in node.values])

    def ev_IfExp(self, node: ast.IfExp) -> Any:
        self.ev(node.test)
        narrowed, otherwise = self.narrow(node.test)
        before = self.state
        self.conditions += 1
        values, ends = [], []
        for holds, said, branch in ((True, narrowed, node.body), (False, otherwise, node.orelse)):
            kept = {k: before.env.get(k) for k in said}
            self.state = before.copy() if _acts(node) else before
            self.state.env.update(said)
            self.tests.append(Test(node.test, holds))
            values.append(self.ev(branch))
            self.tests.pop()
            self.state.env.update(kept)
            ends.append(self.state)
        self.conditions -= 1
        self.state = join(ends[0], ends[1], choice) if ends[0] is not ends[1] else before
        return choice(values)

    def ev_NamedExpr(self, node: ast.NamedExpr) -> Any:
        value = self.ev(node.value)
        self.bind(node.target, value, node)
        return value

    def ev_Tuple(self, node: ast.Tuple | ast.List | ast.Set) -> Any:
        items = []
        for element in node.elts:
            value = self.ev(element.value if isinstance(element, ast.Starred) else element)
            items.append(value)
        if len(items) > 64:
            return None
        if isinstance(node, ast.List) and len(items) == 1 and isinstance(node.elts[0], ast.Starred):
            return items[0]  # [*model.children()]
        if isinstance(node, ast.List):
            made = self.program.obj((node, "list"), lambda: Obj("list", "list", node=node))
            for at, item in enumerate(items):
                self.state.heap[made, f"[{at}]"] = self.state.heap[made, f"[{at - len(items)}]"] = item
                made.attr(f"[{at}]").flows_from(item)
                for option in options(item):
                    made.flows_from(option)
            return made
        return Tuple(tuple(items))

    ev_List = ev_Tuple

    ev_Set = ev_Tuple

    def ev_Dict(self, node: ast.Dict) -> Any:
        pairs = zip(node.keys, node.values, strict=True)
        return self.dictionary(node, [(self.ev(k) if k is not None else None, self.ev(v)) for k, v in pairs])

    def ev_Lambda(self, node: ast.Lambda) -> Any:
        info = self.program.obj(
            (node, "lambda"), lambda: FunctionInfo("<lambda>", node, self.info.module, None, self.info)
        )
        return Function(info)  # pyright: ignore[reportArgumentType]

    def comprehension(self, node: Any, result: list[ast.expr], made: Obj | None = None) -> Any:
        """A comprehension is a loop; its names are its own."""
        kept = dict(self.state.env)
        tests: list[Test] = []
        for generator in node.generators:
            element = self.element(self.ev(generator.iter))
            self.bind(generator.target, element, node)
            for test in generator.ifs:
                self.ev(test)
                tests.append(Test(test, True))
                self.state.env.update(self.narrow(test)[0])
        self.tests.extend(tests)
        self.loop_nodes.append(node)
        values = [self.ev(r) for r in result]
        if made is not None:
            self.collected(node, made, values)
        self.loop_nodes.pop()
        del self.tests[len(self.tests) - len(tests) :]
        self.state.env = kept
        return values

    def ev_ListComp(self, node: ast.ListComp) -> Any:
        made = self.program.obj((node, "list"), lambda: Obj("list", "list", node=node))
        made.flows_from(*self.comprehension(node, [node.elt], made))
        return made

    ev_SetComp = ev_ListComp

    ev_GeneratorExp = ev_ListComp

    def ev_DictComp(self, node: ast.DictComp) -> Any:
        _key, value = self.comprehension(node, [node.key, node.value])
        made = self.program.obj((node, "dict"), lambda: Obj("dict", "dict", node=node))
        made.flows_from(value)
        filtered = [test for generator in node.generators for test in generator.ifs]
        if filtered and len(node.generators) == 1:
            self.event("filter", node, made, tests=filtered)
        return made

    def ev_Starred(self, node: ast.Starred | ast.Await) -> Any:
        return self.ev(node.value)

    ev_Await = ev_Starred

    def ev_Yield(self, node: ast.Yield) -> Any:
        self.summary.inside = self.summary.inside or dict(self.state.modes)
        return self.ev(node.value) if node.value is not None else None

    def ev_Compare(self, node: ast.Compare) -> Any:
        left = self.ev(node.left)
        rights = [self.ev(c) for c in node.comparators]
        self.compared(node, left, rights)
        return None

    def ev_Call(self, node: ast.Call) -> Any:
        return self.call(node)


def _acts(node: ast.IfExp) -> bool:
    """Whether a branch of a conditional expression may set a mode."""
    return any(isinstance(n, ast.Attribute) and n.attr in ("train", "eval") for n in ast.walk(node))


def _sliced(value: Any) -> bool:
    return isinstance(value, Obj) and value.kind in SLICED
