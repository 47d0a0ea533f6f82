"""The statements: assignments, branches, loops."""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.definitions import Class, ClassInfo, Function, arithmetic
from batchnorm.diagnosis.source.interpreter.expressions import Expressions
from batchnorm.diagnosis.source.trace import TRAIN, UNKNOWN, Mode, State, Test, join
from batchnorm.diagnosis.source.values import (
    STATISTICS,
    Choice,
    Const,
    Flag,
    Form,
    Obj,
    Tuple,
    canonical,
    choice,
    options,
)

DEEPEST_LOOP = 3  # loops inside each other that get a second round


class Statements(Expressions):
    """The statements."""

    def block(self, body: Sequence[ast.stmt]) -> None:
        """Run statements until the state is dead."""
        skipped, returned = len(self.skipped), len(self.returned)
        for statement in body:
            if self.state.dead:
                break
            handler = getattr(self, "on_" + type(statement).__name__, None)
            if handler is not None:
                handler(statement)
            else:
                self.children(statement)
            self.flush()
            if isinstance(statement, ast.If) and not statement.orelse:
                last, otherwise = statement.body[-1], Test(statement.test, False)
                self.skipped.extend([otherwise] if isinstance(last, ast.Continue | ast.Break) else [])
                self.returned.extend([otherwise] if isinstance(last, ast.Return) else [])
        del self.skipped[skipped:], self.returned[returned:]

    def children(self, node: ast.AST) -> None:
        """Evaluate what is inside a statement that is not followed."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.ev(child)

    def leave(self, state: State) -> None:
        """Keep the state at an exit of the function."""
        if not state.dead:
            self.exits.append(state)

    def on_FunctionDef(self, node: ast.FunctionDef) -> None:
        found = self.info.inner.get(node.name)
        if found is not None:
            self.state.env[node.name] = Function(found)
            found.closure = self.closed()
        if node.decorator_list and isinstance(self.info.node, ast.Module):
            top = self.info.module.names.get(node.name)
            self.decorated(node, top) if isinstance(top, Function) and top.info.node is node else None

    def closed(self) -> dict[str, Any]:
        """The models that a function inside this one sees by their names here."""
        if isinstance(self.info.node, ast.Module):
            return {}
        kinds = ("external", "instance", "wrapper", "copy", "result")
        return {n: v for n, v in self.state.env.items() if isinstance(v, Obj) and v.kind in kinds}

    on_AsyncFunctionDef = on_FunctionDef

    def on_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods are walked on their own."""
        if node.decorator_list:
            made = next(c for c in self.info.module.classes if c.node is node)
            self.decorated(node, Class(made))

    def on_Expr(self, node: ast.Expr) -> None:
        self.ev(node.value)
        if isinstance(node.value, ast.Attribute) and node.value.attr in ("eval", "train"):
            for owner in options(self.ev(node.value.value)):
                if isinstance(owner, Obj) and owner.kind != "self":
                    self.event("mode not called", node.value, owner)

    def on_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            returned = node.value
            if isinstance(returned, ast.List) and not any(isinstance(e, ast.Starred) for e in returned.elts):
                returned = ast.Tuple(returned.elts)
            value = self.ev(returned)
            if value is not None and len(self.summary.returns) < 8:
                self.summary.returns.append(value)
        self.leave(self.state.copy())
        self.state.dead = True

    def on_Raise(self, node: ast.Raise) -> None:
        self.children(node)
        self.state.dead = True

    def on_Continue(self, node: ast.stmt) -> None:
        if self.loops:
            self.loops[-1].append(self.state.copy())
        self.state.dead = True

    def on_Break(self, node: ast.stmt) -> None:
        if self.loops:
            self.broken[-1].append(self.state.copy())
        self.state.dead = True

    def on_Assign(self, node: ast.Assign) -> None:
        value = self.ev(node.value)
        for target in node.targets:
            self.bind(target, value, node)

    def on_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.ev(node.value), node)

    def on_AugAssign(self, node: ast.AugAssign) -> None:
        target = node.target
        old, new = self.ev(_load(target)), self.ev(node.value)
        if isinstance(old, Obj) and isinstance(new, Form):
            old = self.unknown_tensor(old)
        value = tensors.combine(node.op, old, new, self.state.version)
        if isinstance(old, Obj) and old.kind in ("list", "dict") and isinstance(node.op, ast.Add):
            for option in options(new):
                for item in option.items if isinstance(option, Tuple) else (option,):
                    old.flows_from(item)
            return
        if isinstance(old, Const) and isinstance(new, Const):
            value = arithmetic(node.op, old, new)
        if isinstance(old, Form) and old.live and isinstance(value, Form):
            self.written(node, old, value)
            return
        self.bind(target, value, node)

    def bind(self, target: ast.AST, value: Any, node: ast.AST) -> None:
        """Give a name, an attribute, an element or several of them a value."""
        if isinstance(target, ast.Name):
            self.state.env[target.id] = value
            if target.id in self.globals:
                self.info.module.slot(target.id).flows_from(value)
        elif isinstance(target, ast.Tuple | ast.List):
            starred = any(isinstance(t, ast.Starred) for t in target.elts)
            if isinstance(value, Tuple) and len(value.items) == len(target.elts) and not starred:
                for t, v in zip(target.elts, value.items, strict=True):
                    self.bind(t, v, node)
            else:
                for at, t in enumerate(target.elts):
                    inner = t.value if isinstance(t, ast.Starred) else t
                    self.bind(
                        inner, self.item(value, Const(at)) if isinstance(value, Obj | Choice | Tuple) else None, node
                    )
        elif isinstance(target, ast.Attribute):
            self.bind_attribute(target, value, node)
        elif isinstance(target, ast.Subscript):
            base, key = self.ev(target.value), self.ev(target.slice)
            old = self.item(base, key)
            if isinstance(old, Form) and old.live and not self._rebinds(base, key, old):
                self.assigned(node, old, value)
            elif isinstance(base, Obj):
                if isinstance(key, Const):
                    self.state.heap[base, f"[{key.value}]"] = value
                    for option in options(value) if base.kind == "dict" else ():
                        base.attr(f"[{key.value}]").flows_from(option)
                base.flows_from(value) if base.kind in ("list", "dict") else base.attr("[]").flows_from(value)

    def _rebinds(self, base: Any, key: Any, old: Form) -> bool:
        """Whether an element of a dict or list becomes another tensor, and the one it held stays as it is."""
        if not isinstance(base, Obj) or base.kind == "state" or base.name == "_buffers":
            return False
        return isinstance(key, Const) or any(a.kind == "statistic" for a in old.terms)

    def bind_attribute(self, target: ast.Attribute, value: Any, node: ast.AST) -> None:
        """`x.name = value`."""
        base = self.ev(target.value)
        name = target.attr
        if isinstance(base, Form) and name == "data":
            if base.live:
                self.assigned(node, base, value)
                if isinstance(value, Form):
                    value.terms, value.live, value.mixed = {a: {(): 1.0} for a in base.terms}, True, False
            return
        if isinstance(base, Form) and name == "requires_grad":
            self.gradients(base, value, node)
            return
        for owner in options(base):
            if not isinstance(owner, Obj):
                continue
            of_module = not isinstance(owner.info, ClassInfo) or owner.kind != "self" or owner.info.is_module
            if name in STATISTICS and of_module:
                self.assign_statistic(owner, name, value, node)
                if owner.kind == "self":
                    self.state.heap[owner, name] = value
                continue
            self.event("attribute", node, owner, name=name, value=value)
            if name == "requires_grad":
                self.gradients(owner, value, node)
            self.state.heap[owner, name] = value
            slot = owner.attr(name)
            for option in options(value):
                slot.flows_from(option)

    def assign_statistic(self, owner: Obj, name: str, value: Any, node: ast.AST) -> None:
        """`bn.running_mean = value`: the buffer is now that tensor, and so is the name it came from."""
        old = self.statistic(owner, name)
        self.assigned(node, old, value)
        if isinstance(value, Form) and not value.live:
            value.terms, value.live, value.mixed, value.converted = dict(old.terms), True, False, False

    def assigned(self, node: ast.AST, old: Form, value: Any) -> None:
        """A buffer, a parameter or an entry is assigned what may be no formula."""
        self.written(node, old, value if isinstance(value, Form) else tensors.other(), plain=value)

    def on_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.state.env.pop(target.id, None)

    def on_Global(self, node: ast.Global) -> None:
        self.globals.update(node.names)

    def on_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Names are indexed by the module."""
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            value = self.info.module.names.get(name)
            if value is not None:
                self.state.env.pop(name, None)

    on_ImportFrom = on_Import

    def on_If(self, node: ast.If) -> None:
        tested = self.ev(node.test)
        narrowed, otherwise = self.narrow(node.test)
        before = self.state
        rank = self.about_rank(node.test)
        script = _is_script(node.test)
        self.conditions += not script
        constant = isinstance(tested, Const)
        self.tests.append(Test(node.test, True, constant and bool(tested.value)))
        self.ranks += rank
        self.state = before.copy()
        self.state.env.update(narrowed)
        self.block(node.body)
        then = self.state
        self.restore_narrowed(then, narrowed, before)
        self.ranks -= rank
        self.state = before.copy()
        self.state.env.update(otherwise)
        self.tests[-1] = Test(node.test, False, constant and not tested.value)
        self.block(node.orelse)
        self.restore_narrowed(self.state, otherwise, before)
        self.tests.pop()
        self.conditions -= not script
        if script and not node.orelse:
            self.state = then
        elif narrowed and not node.orelse and not then.dead:
            # `if isinstance(m, BatchNorm): m.eval()`: what is done to the batch norm layers is done to all of them.
            self.state = join(then, self.state, choice)
            self.state.layers.update(then.layers)
        else:
            self.state = join(then, self.state, choice)
        for obj, mode in self.state.modes.items():
            if mode.lapse is not None and mode.test is None:
                self.state.modes[obj] = mode._replace(test=node.test)
        if isinstance(tested, Flag) and then.modes.get(canonical(tested.obj), Mode(UNKNOWN)).value == TRAIN:
            self.back(canonical(tested.obj), tested.mode)

    def back(self, obj: Obj, mode: str | None) -> None:
        """`if was_training: model.train()`: the mode is what it was."""
        if mode is None:
            self.state.modes.pop(obj, None)
        else:
            self.state.modes[obj] = Mode(mode)

    def restore_narrowed(self, state: State, narrowed: dict[str, Any], before: State) -> None:
        """Forget what a test said of a name, behind its branch."""
        for name, value in narrowed.items():
            if state.env.get(name) is value and name in before.env:
                state.env[name] = before.env[name]

    def on_For(self, node: ast.For) -> None:
        iterated = self.ev(node.iter)
        element = self.element(iterated)
        self.around(node, node.body, lambda: self.bind(node.target, element, node))
        self.block(node.orelse)

    on_AsyncFor = on_For

    def on_While(self, node: ast.While) -> None:
        self.ev(node.test)
        self.around(node, node.body, lambda: None)
        self.block(node.orelse)

    def around(self, node: ast.AST, body: list[ast.stmt], start: Any) -> None:
        """A loop's body, and once more if the first round has left another mode or tensor behind."""
        modes, layers, version = dict(self.state.modes), dict(self.state.layers), self.state.version
        self.loop_nodes.append(node)
        self.broken.append([])
        self.round(body, start)
        moved = self.state.modes != modes or self.state.layers != layers
        again = moved or (self.touches_tensors and self.state.version != version)
        if again and len(self.loop_nodes) <= DEEPEST_LOOP and not self.state.dead:
            self.second += 1
            self.round(body, start)
            self.second -= 1
        for state in self.broken.pop():
            self.state = join(self.state, state, choice)
        self.loop_nodes.pop()
        self.state.dead = False

    def round(self, body: list[ast.stmt], start: Any) -> None:
        """One time through a loop's body."""
        self.loops.append([])
        before = self.state.copy()
        start()
        self.block(body)
        for state in self.loops.pop():
            self.state = join(self.state, state, choice)
        if self.state.dead:
            # Every path leaves the function or raises: behind the loop is what was before it.
            self.state = before

    def on_With(self, node: ast.With) -> None:
        kept = self.state.no_grad
        after: dict[Obj, Mode | None] = {}
        for item in node.items:
            context = self.context(item.context_expr)
            if context is not None:
                self.state.no_grad = context[0]
            else:
                self.entered = {}
                value = self.ev(item.context_expr)
                for option in options(value):
                    enters = self.class_of(option) if isinstance(option, Obj) else None
                    method = enters.method("__enter__") if enters is not None and not enters.is_module else None
                    if method is not None and isinstance(item.context_expr, ast.Call):
                        before = dict(self.state.modes)
                        self.apply(item.context_expr, method, option, [], {})
                        self.entered |= {o: m for o, m in self.state.modes.items() if before.get(o) is not m}
                        self.state.modes = before
                after |= {o: self.state.modes.get(o) for o in self.entered}
                self.state.modes |= self.entered
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, value, node)
        self.block(node.body)
        self.state.no_grad = kept
        self.state.modes |= {o: mode for o, mode in after.items() if mode is not None}
        for obj in [o for o, mode in after.items() if mode is None]:
            self.state.modes.pop(obj, None)

    on_AsyncWith = on_With

    def on_Try(self, node: ast.Try) -> None:
        before = self.state.copy()
        self.block(node.body)
        self.block(node.orelse)
        after = self.state
        for handler in node.handlers:
            self.state = before.copy()
            self.conditions += 1
            self.block(handler.body)
            self.conditions -= 1
            after = join(after, self.state, choice)
        self.state = after
        if node.finalbody:
            dead, self.state.dead = self.state.dead, False
            self.block(node.finalbody)
            self.state.dead |= dead

    on_TryStar = on_Try

    def on_Match(self, node: ast.Match) -> None:
        self.ev(node.subject)
        before, after = self.state, None
        for case in node.cases:
            self.state = before.copy()
            self.conditions += 1
            self.block(case.body)
            self.conditions -= 1
            after = self.state if after is None else join(after, self.state, choice)
        self.state = after if after is not None else before


def _load(node: ast.Name | ast.Attribute | ast.Subscript) -> ast.expr:
    """A target, as it is read."""
    if isinstance(node, ast.Name):
        read: ast.expr = ast.Name(node.id, ast.Load())
    elif isinstance(node, ast.Attribute):
        read = ast.Attribute(node.value, node.attr, ast.Load())
    else:
        read = ast.Subscript(node.value, node.slice, ast.Load())
    return ast.copy_location(read, node)


def _is_script(test: ast.AST) -> bool:
    """`__name__ == "__main__"`: no condition, but what a script does."""
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
