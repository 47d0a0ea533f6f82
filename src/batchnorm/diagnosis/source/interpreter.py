"""An abstract interpreter: walks each function once, follows values and modes, composes functions by summaries.

Two rounds: the first collects what flows into parameters, attributes and globals; the second, which knows,
leaves the events.
"""

# ruff: noqa: D102 (a method a kind of node, named by it)

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from typing import Any

from batchnorm.diagnosis.source import tensors
from batchnorm.diagnosis.source.calls import Calls
from batchnorm.diagnosis.source.project import ClassInfo, FunctionInfo, Project, arithmetic, member
from batchnorm.diagnosis.source.trace import Event, State, Summary, join
from batchnorm.diagnosis.source.values import (
    STATISTICS,
    Atom,
    Choice,
    Class,
    ClassName,
    Const,
    External,
    Flag,
    Form,
    Function,
    Namespace,
    Obj,
    Tuple,
    choice,
    options,
)

BUILTINS = frozenset(dir(builtins))
DEEPEST_CALL = 40
DEEPEST_LOOP = 2  # loops inside each other that get a second round
RANKS = (
    "rank",
    "local_rank",
    "global_rank",
    "get_rank",
    "is_main_process",
    "is_local_main_process",
    "is_master",
    "is_main",
    "main_process",
    "is_rank_zero",
    "is_primary",
)


class Program:
    """The interpretation of a project: run it, then read `events`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.events: dict[tuple[Any, ...], Event] = {}
        self.summaries: dict[int, Summary] = {}
        self.busy: set[int] = set()
        self.made: dict[tuple[Any, ...], Obj] = {}

    def run(self) -> list[Event]:
        """All events of the program."""
        for _ in range(2):
            self.events.clear()
            self.summaries.clear()
            for module in self.project.modules.values():
                order = sorted(module.functions, key=lambda f: (f.name != "__init__", isinstance(f.node, ast.Module)))
                for function in order:
                    self.summarize(function)
        return list(self.events.values())

    def summarize(self, info: FunctionInfo, depth: int = 0) -> Summary:
        """A function's summary, made once; of one that calls itself, and beyond a depth of calls, an empty one."""
        key = id(info)
        if key in self.summaries:
            return self.summaries[key]
        if key in self.busy or depth > DEEPEST_CALL:
            return Summary()
        self.busy.add(key)
        try:
            walk = Interpreter(self, info, depth)
            walk.whole()
            self.summaries[key] = walk.summary
        except RecursionError:
            self.summaries[key] = Summary()
        finally:
            self.busy.discard(key)
        return self.summaries[key]

    def obj(self, key: tuple[Any, ...], make: Any) -> Obj:
        """The object made at a place: the same one in both rounds."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class Interpreter(Calls):
    """One function's walk."""

    def whole(self) -> None:
        """Bind the parameters, run the body, and keep what a caller can see."""
        node, info = self.info.node, self.info
        if not isinstance(node, ast.Module):
            self.bind_parameters()
            for decorator in getattr(node, "decorator_list", []):
                self.decorator(decorator)
        body = node.body if isinstance(node.body, list) else [ast.Return(node.body, lineno=getattr(node, "lineno", 1))]
        self.block(body)
        self.leave(self.state)
        final: State | None = None
        for state in self.exits:
            final = state if final is None else join(final, state, choice)
        final = final or self.state
        s = self.summary
        s.modes, s.layers, s.frozen, s.half = final.modes, final.layers, final.frozen, final.half
        s.loaded = set(final.loaded)
        s.assigned = final.heap
        if isinstance(node, ast.Module):
            for name in info.module.assigned:
                value = final.env.get(name)
                if value is not None and not isinstance(value, Const | External):
                    for option in options(value):
                        info.module.slot(name).flows_from(option)

    def bind_parameters(self) -> None:
        """A slot a parameter; the first one of a method is its class's own object."""
        info = self.info
        if isinstance(info.node, ast.Module):
            return
        args = info.node.args
        plain = [*args.posonlyargs, *args.args]
        names = [a.arg for a in (*plain, *args.kwonlyargs)]
        names += [a.arg for a in (args.vararg, args.kwarg) if a is not None]
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in getattr(info.node, "decorator_list", [])
        )
        for at, name in enumerate(names):
            if at == 0 and info.owner is not None and plain and not static:
                self.state.env[name] = info.owner.self_obj
                continue
            if name not in info.params:
                info.params[name] = Obj("parameter", name, info=info)
            self.state.env[name] = info.params[name]

    def decorator(self, node: ast.expr) -> None:
        """`@torch.no_grad()` and the like."""
        target = node.func if isinstance(node, ast.Call) else node
        value = self.info.module.static(target)
        if isinstance(value, External) and value.name in self.without_gradients:
            self.state.no_grad = True

    # Statements
    # --------------------------------------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt]) -> None:
        """Run statements until the state is dead."""
        for statement in body:
            if self.state.dead:
                return
            handler = getattr(self, "on_" + type(statement).__name__, None)
            if handler is not None:
                handler(statement)
            else:
                self.children(statement)
            self.flush()

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
            self.closure[node.name] = found

    on_AsyncFunctionDef = on_FunctionDef

    def on_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods are walked on their own."""

    def on_Expr(self, node: ast.Expr) -> None:
        self.ev(node.value)
        if isinstance(node.value, ast.Attribute) and node.value.attr in ("eval", "train"):
            for owner in options(self.ev(node.value.value)):
                if isinstance(owner, Obj) and owner.kind != "self":
                    self.event("mode not called", node.value, owner)

    def on_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            value = self.ev(node.value)
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

    on_Break = on_Continue

    def on_Assign(self, node: ast.Assign) -> None:
        value = self.ev(node.value)
        for target in node.targets:
            self.bind(target, value, node)

    def on_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.ev(node.value), node)

    def on_AugAssign(self, node: ast.AugAssign) -> None:
        target = node.target
        load = ast.copy_location(_load(target), target)
        old, new = self.ev(load), self.ev(node.value)
        if tensors.as_form(old) is None and tensors.as_form(new) is not None and isinstance(old, Obj):
            old = self.unknown_tensor(old)
        value = tensors.combine(node.op, old, new, self.state.version)
        if isinstance(old, Obj) and old.kind in ("list", "dict") and isinstance(node.op, ast.Add):
            for option in options(new):
                for item in option.items if isinstance(option, Tuple) else (option,):
                    old.flows_from(item)
            return
        if isinstance(old, Const) and isinstance(new, Const):
            value = arithmetic(node.op, old, new)
        form = tensors.as_form(value)
        if isinstance(old, Form) and old.live and form is not None:
            self.written(node, old, form, augmented=True)
            if isinstance(target, ast.Name):
                return
            if isinstance(target, ast.Subscript | ast.Attribute):
                return
        self.bind(target, value, node)

    def bind(self, target: ast.AST, value: Any, node: ast.AST) -> None:
        """Give a name, an attribute, an element or several of them a value."""
        if isinstance(target, ast.Name):
            self.state.env[target.id] = value
            if target.id in self.globals:
                self.info.module.slot(target.id).flows_from(value)
        elif isinstance(target, ast.Tuple | ast.List):
            if (
                isinstance(value, Tuple)
                and len(value.items) == len(target.elts)
                and not any(isinstance(t, ast.Starred) for t in target.elts)
            ):
                for t, v in zip(target.elts, value.items, strict=True):
                    self.bind(t, v, node)
            else:
                for at, t in enumerate(target.elts):
                    inner = t.value if isinstance(t, ast.Starred) else t
                    self.bind(inner, self.item(value, Const(at)) if isinstance(value, Obj) else None, node)
        elif isinstance(target, ast.Attribute):
            self.bind_attribute(target, value, node)
        elif isinstance(target, ast.Subscript):
            base, key = self.ev(target.value), self.ev(target.slice)
            old = self.item(base, key)
            if isinstance(old, Form) and old.live:
                self.written(node, old, tensors.as_form(value) or tensors.other([], 0), plain=value)
            elif isinstance(base, Obj):
                if isinstance(key, Const):
                    self.state.heap[base, f"[{key.value}]"] = value
                base.flows_from(value) if base.kind in ("list", "dict") else base.attr("[]").flows_from(value)

    def bind_attribute(self, target: ast.Attribute, value: Any, node: ast.AST) -> None:
        """`x.name = value`."""
        base = self.ev(target.value)
        name = target.attr
        if isinstance(base, Form) and name == "data":
            if base.live:
                self.written(node, base, tensors.as_form(value) or tensors.other([], 0), plain=value)
                if isinstance(value, Form):
                    value.terms, value.live, value.mixed = {a: {(): 1.0} for a in base.terms}, True, False
            return
        if isinstance(base, Form) and name == "requires_grad":
            self.gradients(base, value, node)
            return
        for owner in options(base):
            if not isinstance(owner, Obj):
                continue
            if name in STATISTICS and (
                not isinstance(owner.info, ClassInfo) or owner.kind != "self" or owner.info.is_module
            ):
                self.assign_statistic(owner, name, value, node, target)
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

    def assign_statistic(self, owner: Obj, name: str, value: Any, node: ast.AST, target: ast.Attribute) -> None:
        """`bn.running_mean = value`: the buffer is now that tensor, and so is the name it came from."""
        old = self.statistic(owner, name)
        form = tensors.as_form(value)
        self.written(node, old, form if form is not None else tensors.other([], 0), plain=value)
        if form is not None and not form.live:
            form.terms, form.live, form.mixed, form.converted = dict(old.terms), True, False, False

    def on_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.state.env.pop(target.id, None)

    def on_Global(self, node: ast.Global) -> None:
        self.globals.update(node.names)

    def on_Nonlocal(self, node: ast.Nonlocal) -> None:
        """Closures are not followed."""

    def on_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Names are indexed by the module."""
        for alias in node.names:
            name = alias.asname or alias.name.split(".")[0]
            value = self.info.module.names.get(name)
            if value is not None:
                self.state.env.pop(name, None)

    on_ImportFrom = on_Import

    def on_If(self, node: ast.If) -> None:
        self.ev(node.test)
        narrowed, otherwise = self.narrow(node.test)
        before = self.state
        rank = self.about_rank(node.test)
        script = _is_script(node.test)
        self.conditions += not script
        self.tests.append(node.test)
        self.ranks += rank
        self.state = before.copy()
        self.state.env.update(narrowed)
        self.block(node.body)
        then = self.state
        self.restore_narrowed(then, narrowed, before)
        self.ranks -= rank
        self.state = before.copy()
        self.state.env.update(otherwise)
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

    def restore_narrowed(self, state: State, narrowed: dict[str, Any], before: State) -> None:
        """Forget what a test said of a name, behind its branch."""
        for name, value in narrowed.items():
            if state.env.get(name) is value and name in before.env:
                state.env[name] = before.env[name]

    def about_rank(self, test: ast.AST) -> bool:
        """Whether a test lets one process through."""
        for node in ast.walk(test):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if name in RANKS:
                compared = [n for n in ast.walk(test) if isinstance(n, ast.Compare)]
                if "rank" in name and "zero" not in name:
                    return any(
                        isinstance(c.ops[0], ast.Eq)
                        and isinstance(c.comparators[0], ast.Constant)
                        and c.comparators[0].value == 0
                        for c in compared
                    )
                return True
        return False

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
        self.depth_of_loops += 1
        self.loop_nodes.append(node)
        self.round(body, start)
        moved = self.state.modes != modes or self.state.layers != layers
        again = moved or (self.touches_tensors and self.state.version != version)
        if again and self.depth_of_loops <= DEEPEST_LOOP and not self.state.dead:
            self.second += 1
            self.round(body, start)
            self.second -= 1
        self.loop_nodes.pop()
        self.depth_of_loops -= 1
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
        for item in node.items:
            context = self.context(item.context_expr)
            if context is not None:
                self.state.no_grad = context[0]
            else:
                value = self.ev(item.context_expr)
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, value, node)
        self.block(node.body)
        self.state.no_grad = kept

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

    # Expressions
    # -------------------------------------------------------------------------------------------------------

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
        outer = self.info.outer
        while outer is not None and not isinstance(outer.node, ast.Module):
            if name in outer.params:
                return outer.params[name]
            if name in outer.inner:
                return Function(outer.inner[name])
            outer = outer.outer
        module = self.info.module
        value = module.top(name)
        if value is not None:
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
        if isinstance(base, External | Namespace | Class):
            return member(base, name)
        if isinstance(base, Choice):
            return choice([self.read(option, name, node) for option in base.options])
        if isinstance(base, Form):
            return base if name in ("data", "T") else None
        if not isinstance(base, Obj):
            return None
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
            return ClassName(base)
        if name == "module" and base.kind in (
            "parameter",
            "attribute",
            "global",
            "result",
            "unknown",
            "instance",
            "copy",
            "external",
        ):
            # The model inside a wrapper; a class's own attribute of that name is one.
            own = isinstance(base.info, ClassInfo) and "module" in base.info.self_obj.attrs
            if not own or base.kind != "instance":
                return base
        if name == "data" and base.kind in ("attribute", "parameter") and base.name in ("[]", "param", "p"):
            return self.unknown_tensor(base)
        if name in ("state_dict", "parameters"):
            return None
        info = self.class_of(base)
        if info is not None:
            found = info.method(name)
            if found is not None:
                return Function(found, base)
            constant = info.constant(name)
            if constant is not None and name not in base.attrs and name not in info.self_obj.attrs:
                return constant
        return self.slot_of(base, name)

    def ev_Subscript(self, node: ast.Subscript) -> Any:
        base, key = self.ev(node.value), self.ev(node.slice)
        if isinstance(node.slice, ast.Tuple) and isinstance(base, Obj) and base.kind == "attribute":
            first = node.slice.elts[0] if node.slice.elts else None
            if isinstance(first, ast.Slice) and first.lower is None and first.upper is None:
                return base  # all samples of a batch
        return self.item(base, key)

    def ev_Slice(self, node: ast.Slice) -> Any:
        for part in (node.lower, node.upper, node.step):
            if part is not None:
                self.ev(part)
        return None

    def ev_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.ev(node.left), self.ev(node.right)
        if isinstance(left, Const) and isinstance(right, Const):
            return arithmetic(node.op, left, right)
        if isinstance(node.op, ast.Add) and isinstance(left, Tuple) and isinstance(right, Tuple):
            return Tuple((*left.items, *right.items))
        # An unknown tensor meets one that is known to be one.
        if isinstance(left, Obj) and isinstance(right, Form) and isinstance(node.op, ast.Add | ast.Sub):
            left = self.unknown_tensor(left)
        if isinstance(right, Obj) and isinstance(left, Form) and isinstance(node.op, ast.Add | ast.Sub):
            right = self.unknown_tensor(right)
        return tensors.combine(node.op, left, right, self.state.version)

    def ev_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.ev(node.operand)
        if isinstance(node.op, ast.USub):
            return (
                tensors.combine(ast.Sub(), Const(0.0), value, self.state.version)
                if not isinstance(value, Const)
                else self.info.module.static(node)
            )
        if isinstance(node.op, ast.Not) and isinstance(value, Const):
            return Const(not value.value)
        return None

    def ev_BoolOp(self, node: ast.BoolOp) -> Any:
        return choice([self.ev(v) for v in node.values])

    def ev_IfExp(self, node: ast.IfExp) -> Any:
        self.ev(node.test)
        narrowed, otherwise = self.narrow(node.test)
        kept = {k: self.state.env.get(k) for k in (*narrowed, *otherwise)}
        self.conditions += 1
        self.state.env.update(narrowed)
        then = self.ev(node.body)
        self.state.env.update({**kept, **otherwise})
        rest = self.ev(node.orelse)
        self.state.env.update(kept)
        self.conditions -= 1
        return choice([then, rest])

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
        if isinstance(node, ast.List):
            made = self.program.obj((node, "list"), lambda: Obj("list", "list", node=node))
            for at, item in enumerate(items):
                self.state.heap[made, f"[{at}]"] = self.state.heap[made, f"[{at - len(items)}]"] = item
                for option in options(item):
                    made.flows_from(option)
            return made
        return Tuple(tuple(items))

    ev_List = ev_Tuple
    ev_Set = ev_Tuple

    def ev_Dict(self, node: ast.Dict) -> Any:
        made = self.program.obj((node, "dict"), lambda: Obj("dict", "dict", node=node))
        for key, value in zip(node.keys, node.values, strict=True):
            k = self.ev(key) if key is not None else None
            v = self.ev(value)
            if isinstance(k, Const):
                self.state.heap[made, f"[{k.value}]"] = v
                made.attr(f"[{k.value}]").flows_from(v)
            for option in options(v):
                made.flows_from(option)
        return made

    def ev_Lambda(self, node: ast.Lambda) -> Any:
        info = self.program.obj(
            (node, "lambda"), lambda: FunctionInfo("<lambda>", node, self.info.module, None, self.info)
        )
        return Function(info)  # pyright: ignore[reportArgumentType]

    def comprehension(self, node: Any, result: list[ast.expr]) -> Any:
        """A comprehension is a loop; its names are its own."""
        kept = dict(self.state.env)
        tests: list[ast.expr] = []
        for generator in node.generators:
            element = self.element(self.ev(generator.iter))
            self.bind(generator.target, element, node)
            for test in generator.ifs:
                self.ev(test)
                tests.append(test)
                self.state.env.update(self.narrow(test)[0])
        self.tests.extend(tests)
        values = [self.ev(r) for r in result]
        if tests:
            del self.tests[-len(tests) :]
        self.state.env = kept
        return values

    def ev_ListComp(self, node: ast.ListComp) -> Any:
        (value,) = self.comprehension(node, [node.elt])
        made = self.program.obj((node, "list"), lambda: Obj("list", "list", node=node))
        made.flows_from(value)
        return made

    ev_SetComp = ev_ListComp
    ev_GeneratorExp = ev_ListComp

    def ev_DictComp(self, node: ast.DictComp) -> Any:
        _key, value = self.comprehension(node, [node.key, node.value])
        made = self.program.obj((node, "dict"), lambda: Obj("dict", "dict", node=node))
        made.flows_from(value)
        filtered = [test for generator in node.generators for test in generator.ifs]
        sources = [self.ev(g.iter) for g in node.generators]
        if filtered and len(sources) == 1:
            self.event("filter", node, made, source=sources[0], tests=filtered)
        return made

    def ev_Starred(self, node: ast.Starred) -> Any:
        return self.ev(node.value)

    def ev_Await(self, node: ast.Await) -> Any:
        return self.ev(node.value)

    def ev_JoinedStr(self, node: ast.JoinedStr) -> Any:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.ev(part.value)
        return None

    def ev_Compare(self, node: ast.Compare) -> Any:
        left = self.ev(node.left)
        rights = [self.ev(c) for c in node.comparators]
        self.compared(node, left, rights)
        return None

    def ev_Call(self, node: ast.Call) -> Any:
        return self.call(node)


def _is_script(test: ast.AST) -> bool:
    """`__name__ == "__main__"`: no condition, but what a script does."""
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"


def _load(node: ast.AST) -> ast.expr:
    """A target, as it is read."""
    if isinstance(node, ast.Name):
        return ast.Name(node.id, ast.Load())
    if isinstance(node, ast.Attribute):
        return ast.copy_location(ast.Attribute(node.value, node.attr, ast.Load()), node)
    assert isinstance(node, ast.Subscript)
    return ast.copy_location(ast.Subscript(node.value, node.slice, ast.Load()), node)


def atom_of(form: Form) -> Atom | None:
    """The one tensor that a form is."""
    return next(iter(form.terms)) if len(form.terms) == 1 else None
