"""What tests and contexts say: a layer by its class, one process, no gradients."""

from __future__ import annotations

import ast
import re
from typing import Any

from batchnorm.diagnosis.source.contents import inflow
from batchnorm.diagnosis.source.definitions import Class
from batchnorm.diagnosis.source.interpreter.containers import Containers
from batchnorm.diagnosis.source.names import WITHOUT_GRADIENTS, is_layer, last
from batchnorm.diagnosis.source.syntax import calls_by_name, name_of
from batchnorm.diagnosis.source.values import ClassName, Const, External, Obj, choice, options

RANKS = re.compile(
    r"(local_|global_|get_)?rank|is_(local_)?main_process|main_process|is_(master|main|rank_zero|primary)"
)


class Narrowing(Containers):
    """Tests and contexts."""

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
        value = self.state.env.get(name) if name is not None else None
        if name is None or not any(isinstance(o, Obj) for o in options(value)):
            return {}, {}
        return {name: choice([self._layer(test, name, o) for o in options(value) if isinstance(o, Obj)])}, {}

    def _layer(self, test: ast.AST, name: str, value: Obj) -> Obj:
        owner = value.info if value.kind == "layer" else value
        parent = owner if isinstance(owner, Obj) else None
        return self.program.obj((id(test), id(value)), lambda: Obj("batch norm", name, parent=parent, info=value))

    def _tested_layer(self, test: ast.AST) -> str | None:
        """The name that a test finds to be batch norm, by its class or by its class's name."""
        if isinstance(test, ast.Call) and calls_by_name(test, "isinstance") and len(test.args) == 2:
            subject, classes = test.args
            names = classes.elts if isinstance(classes, ast.Tuple) else [classes]
            if isinstance(subject, ast.Name) and any([self._is_layer_class(n) for n in names]):
                return subject.id
        if not isinstance(test, ast.Compare) or len(test.ops) != 1:
            return None
        op, left, right = test.ops[0], test.left, test.comparators[0]
        if isinstance(op, ast.In) and isinstance(left, ast.Constant):
            word = str(left.value).lower()
            return self._named(right) if "norm" in word and "batch" in word else None
        subject = left.args[0] if isinstance(left, ast.Call) and left.args else None
        if isinstance(left, ast.Call) and isinstance(left.func, ast.Attribute) and left.func.attr == "find":
            named = isinstance(subject, ast.Constant) and "batchnorm" in str(subject.value).lower()
            return self._named(left.func.value) if named else None
        if isinstance(op, ast.Eq | ast.Is) and calls_by_name(left, "type") and isinstance(subject, ast.Name):
            return subject.id if self._is_layer_class(right) else None
        return None

    def _is_layer_class(self, node: ast.AST) -> bool:
        value = self.ev(node)
        # `self.norm_layer` too
        held = [o for s in inflow(value) for o in options(s)] if isinstance(value, Obj) else options(value)
        bases = (b for o in held for b in (o.info.ancestors() if isinstance(o, Class) else [o]))
        return any(isinstance(b, External) and is_layer(b.name) for b in bases)

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

    def compared(self, node: ast.Compare, left: Any, rights: list[Any]) -> None:
        """`'bn' in name`, of a name in named_modules() or named_parameters()."""
        of, word = rights[0], left.value if isinstance(left, Const) else None
        asks = len(node.ops) == 1 and isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(word, str)
        if asks and isinstance(of, ClassName) and not of.of_class:
            self.event("name", node, None, word=word, of=of.obj)

    def about_rank(self, test: ast.AST) -> bool:
        """Whether a test lets one process through."""
        for node in ast.walk(test):
            name = name_of(node)
            if RANKS.fullmatch(name):
                equal = (c for c in ast.walk(test) if isinstance(c, ast.Compare) and isinstance(c.ops[0], ast.Eq))
                first = any(getattr(c.comparators[0], "value", None) == 0 for c in equal)
                return first or "rank" not in name or "zero" in name
        return False

    def context(self, node: ast.AST) -> tuple[bool | None] | None:
        """Whether a context switches gradients off; None if it is about something else."""
        target = node.func if isinstance(node, ast.Call) else node
        value = self.ev(target) if isinstance(target, ast.Name | ast.Attribute) else None
        if isinstance(value, External):
            if WITHOUT_GRADIENTS.fullmatch(value.name):
                return (True,)
            if value.name == "torch.enable_grad":
                return (False,)
            if last(value.name) == "set_grad_enabled" and isinstance(node, ast.Call):
                said = self.ev(node.args[0]) if node.args else None
                return (not said.value,) if isinstance(said, Const) else (None,)
        return None
