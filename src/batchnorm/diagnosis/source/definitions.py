"""Modules, classes and functions of the linted files, and what a name means at the top of a module."""

from __future__ import annotations

import ast
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from batchnorm.diagnosis.source.syntax import name_of, nodes_of
from batchnorm.diagnosis.source.values import STATISTICS, Const, External, Obj

Definition = ast.FunctionDef | ast.AsyncFunctionDef


NO_ARGUMENTS = ast.arguments([], [], None, [], [], None, [])


class Files(Protocol):
    """The files that a module belongs to."""

    modules: dict[str, Module]

    def find(self, name: str, near: Module) -> Module | None:
        """The module that an import in `near` means."""
        ...

    def inside(self, module: Module, name: str) -> Any:
        """A module inside a package."""
        ...


@dataclass(eq=False)
class FunctionInfo:
    """A function, a method, or a module's own code."""

    name: str
    node: Definition | ast.Module | ast.Lambda
    module: Module
    owner: ClassInfo | None = None
    outer: FunctionInfo | None = None
    params: dict[str, Obj] = field(default_factory=dict)
    inner: dict[str, FunctionInfo] = field(default_factory=dict)
    closure: dict[str, Any] = field(default_factory=dict)  # the names of the function around it

    @property
    def arguments(self) -> ast.arguments:
        """Its parameters as they are written; none of a module's own code."""
        return NO_ARGUMENTS if isinstance(self.node, ast.Module) else self.node.args

    @cached_property
    def positional(self) -> list[str]:
        """The parameters that may be given by their place."""
        return [a.arg for a in (*self.arguments.posonlyargs, *self.arguments.args)]

    @cached_property
    def defaults(self) -> dict[str, ast.expr]:
        """The default values by parameter."""
        given, named = self.arguments.defaults, zip(self.arguments.kwonlyargs, self.arguments.kw_defaults, strict=True)
        found = dict(zip(self.positional[len(self.positional) - len(given) :], given, strict=True))
        return found | {arg.arg: default for arg, default in named if default is not None}

    @cached_property
    def literals(self) -> dict[str, Any]:
        """The default values that are literals."""
        return {n: d.value for n, d in self.defaults.items() if isinstance(d, ast.Constant)}

    @cached_property
    def static(self) -> bool:
        """Whether it is a static method."""
        return self._decorated("staticmethod")

    @cached_property
    def makes_by_name(self) -> str | None:
        """The parameter that is a module, of which it returns what has a name: `return getattr(module, name)(...)`."""
        for node in nodes_of(self.node) if "getattr(" in self.module.text else ():
            made = node.value.func if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) else None
            of = made.args[0] if isinstance(made, ast.Call) and name_of(made.func) == "getattr" and made.args else None
            if isinstance(of, ast.Name) and of.id in self.positional:
                return of.id
        return None

    @cached_property
    def of_class(self) -> bool:
        """Whether it is a class method."""
        return self._decorated("classmethod")

    def _decorated(self, by: str) -> bool:
        return any(isinstance(d, ast.Name) and d.id == by for d in self.decorators)

    @property
    def decorators(self) -> list[ast.expr]:
        """Its decorators."""
        return getattr(self.node, "decorator_list", [])

    @property
    def body(self) -> list[ast.stmt]:
        """Its statements; of a lambda, what it returns."""
        body = self.node.body
        return body if isinstance(body, list) else [ast.Return(body, lineno=getattr(self.node, "lineno", 1))]


@dataclass(eq=False)
class ClassInfo:
    """A class: its methods, bases, constants, and one object that stands for `self` in its methods."""

    name: str
    node: ast.ClassDef
    module: Module
    methods: dict[str, FunctionInfo] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    heirs: list[ClassInfo] = field(default_factory=list)  # the classes that inherit from it

    def __post_init__(self) -> None:
        self.self_obj = Obj("self", "self", info=self)
        self._bases: list[Any] | None = None

    @property
    def bases(self) -> list[Any]:
        """What it inherits from: `Class` and `External` values."""
        if self._bases is None:
            self._bases = []
            self._bases = [b for b in (self.module.static(base) for base in self.node.bases) if b is not None]
        return self._bases

    def ancestors(self, seen: set[int] | None = None) -> list[Any]:
        """Itself, its bases of the linted files, then names from outside."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            return []
        seen.add(id(self))
        found: list[Any] = [self]
        for base in self.bases:
            found.extend(base.info.ancestors(seen) if isinstance(base, Class) else [base])
        return found

    @property
    def lineage(self) -> list[ClassInfo]:
        """Itself and its bases of the linted files."""
        return [a for a in self.ancestors() if isinstance(a, ClassInfo)]

    def method(self, name: str) -> FunctionInfo | None:
        """A method, inherited ones included."""
        return next((a.methods[name] for a in self.lineage if name in a.methods), None)

    def constant(self, name: str) -> Any:
        """A class attribute's value."""
        of = next((a for a in self.lineage if name in a.constants), None)
        return None if of is None else of.dicts.get(name) or of.module.static(of.constants[name])

    @cached_property
    def dicts(self) -> dict[str, Obj]:
        """The constants that are dicts of literals, `{"momentum": 0.9}` or `dict(momentum=0.9)`."""
        found: dict[str, Obj] = {}
        for name, node in self.constants.items():
            pairs = []
            if isinstance(node, ast.Dict):
                each = zip(node.keys, node.values, strict=True)
                pairs = [(k.value, v) for k, v in each if isinstance(k, ast.Constant)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
                pairs = [(k.arg, k.value) for k in node.keywords]
            if pairs:
                found[name] = Obj("dict", name, node=node)
                for key, value in pairs:
                    static = self.module.static(value)
                    found[name].attr(f"[{key}]").flows_from(static)
                    found[name].flows_from(static)
        return found

    @property
    def is_module(self) -> bool:
        """Whether it is a torch module, as far as its bases say."""
        names = [a.name for a in self.ancestors() if isinstance(a, External)]
        return any(n.startswith(("torch.nn.", "torchvision.", "timm.")) or n.endswith("Module") for n in names)


@dataclass(eq=False)
class Module:
    """A file: its tree and the names at its top."""

    name: str
    path: str
    text: str
    tree: ast.Module
    project: Files

    def __post_init__(self) -> None:
        self.file = self.path.rsplit("/", 1)[-1]
        self.body = FunctionInfo("", self.tree, self)
        self.names: dict[str, Any] = {}  # a plain tuple is an import that nobody has asked for yet
        self.assigned: dict[str, list[ast.expr]] = {}
        self.stars: list[str] = []
        self.imports: list[str] = []
        self.slots: dict[str, Obj] = {}
        self.functions: list[FunctionInfo] = [self.body]
        self.classes: list[ClassInfo] = []
        self._resolving: set[str] = set()
        self._index(self.tree.body, self.body, None, top=True)

    def _index(self, body: list[ast.stmt], function: FunctionInfo, owner: ClassInfo | None, top: bool = False) -> None:
        """Walk statements once; each function and class is registered where it is defined."""
        stack = [(statement, function, owner, top) for statement in reversed(body)]
        while stack:
            node, function, owner, top = stack.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                info = FunctionInfo(node.name, node, self, owner, function)
                self.functions.append(info)
                if owner is not None:
                    owner.methods[node.name] = info
                elif top:
                    self.names.setdefault(node.name, Function(info))
                else:
                    function.inner[node.name] = info
                stack.extend((child, info, None, False) for child in reversed(node.body))
                continue
            if isinstance(node, ast.ClassDef):
                made = ClassInfo(node.name, node, self)
                self.classes.append(made)
                if top or node.name not in self.names:
                    self.names.setdefault(node.name, Class(made))
                stack.extend((child, function, made, False) for child in reversed(node.body))
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name) and owner is not None and not isinstance(node, ast.AugAssign):
                        owner.constants[target.id] = node.value
                    elif isinstance(target, ast.Name | ast.Tuple) and top:
                        self._assign(target, node if isinstance(node, ast.AugAssign) else node.value)
            for part in (node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())):
                for block in ("body", "orelse", "finalbody"):
                    stack.extend((child, function, owner, top) for child in reversed(getattr(part, block, None) or []))

    def _assign(self, target: ast.Name | ast.Tuple, value: Any) -> None:
        for name in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(name, ast.Name):
                self.assigned.setdefault(name.id, []).append(value if name is target else name)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                self.names[alias.asname or name] = (name, "")
                self.imports.append(alias.name)
            return
        base = _origin(node)
        self.imports.append(base)
        self.imports += [f"{base}{'' if base.endswith('.') else '.'}{alias.name}" for alias in node.names]
        for alias in node.names:
            if alias.name == "*":
                self.stars.append(base)
            else:
                self.names[alias.asname or alias.name] = (base, alias.name)

    def imported_from(self, node: ast.ImportFrom, name: str) -> Any:
        """What one import brings, where several bring the same name."""
        return self._imported(_origin(node), name)

    def top(self, name: str) -> Any:
        """What a name at the top of the module means: a class, a function, a module, a constant, an outside name."""
        value = self.names.get(name)
        imported = type(value) is tuple
        if value is not None and not imported:
            return value
        if name in self._resolving:
            return None  # files that import each other
        self._resolving.add(name)
        try:
            if imported:
                self.names[name] = self._imported(*value)
                return self.names[name]
            if name in self.assigned:
                return self.static(self.assigned[name][0]) if len(self.assigned[name]) == 1 else None
            return self._starred(name)
        finally:
            self._resolving.discard(name)

    def _starred(self, name: str) -> Any:
        """What an `import *` may have brought."""
        for base in self.stars:
            module = self.project.find(base, self)
            found = module.top(name) if module is not None else None
            if found is not None:
                return found
            if module is None and base in ("torch.nn", "torch", "torchvision.models") and name[:1].isupper():
                return External(f"{base}.{name}")
        return None

    def _imported(self, base: str, name: str) -> Any:
        module = self.project.find(base, self)
        if not name:
            return Namespace(module) if module is not None else External(base)
        if module is not None:
            found = module.top(name)
            if found is not None:
                return found
            if name in module.assigned:
                return module.slot(name)
        inner = self.project.find(f"{base}.{name}" if not base.endswith(".") else f"{base}{name}", self)
        if inner is not None:
            return Namespace(inner)
        return External(f"{base.lstrip('.')}.{name}" if base.strip(".") else name)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return nodes_of(self.tree)

    @cached_property
    def imported(self) -> set[Module]:
        """The files that names of this one come from."""
        found: set[Module] = set()
        for name in list(self.names):
            value = self.top(name)
            if isinstance(value, Namespace):
                found.add(value.module)
            elif isinstance(value, Class | Function):
                found.add(value.info.module)
        return {*found, *self.starred} - {self}

    @property
    def starred(self) -> list[Module]:
        """The files of which it imports all names."""
        return [m for base in self.stars if (m := self.project.find(base, self)) is not None]

    @property
    def is_test(self) -> bool:
        """Whether the file is a test of the program itself, as pytest and unittest find them."""
        return self.file.startswith("test_") and ("unittest" in self.text or "assert" in self.text)

    @cached_property
    def touches_statistics(self) -> bool:
        """Whether the file names a running statistic."""
        return any(name in self.text for name in STATISTICS)

    @cached_property
    def read_attributes(self) -> frozenset[str]:
        """The names of all attributes that the file reads, by getattr and by strings too."""
        found: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
                found.add(node.value)
        return frozenset(found)

    def slot(self, name: str) -> Obj:
        """The object that stands for a name assigned at the top."""
        if name not in self.slots:
            self.slots[name] = Obj("global", name, info=self)
        return self.slots[name]

    def static(self, node: ast.AST) -> Any:
        """What an expression means without running anything: names, attributes, literals, negative numbers."""
        if isinstance(node, ast.Constant):
            return Const(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.static(node.operand)
            return Const(-value.value) if isinstance(value, Const) and type(value.value) in (int, float) else None
        if isinstance(node, ast.BinOp):
            left, right = self.static(node.left), self.static(node.right)
            if isinstance(left, Const) and isinstance(right, Const):
                return arithmetic(node.op, left, right)
            return None
        if isinstance(node, ast.Name):
            return self.top(node.id) or (None if node.id in self.assigned else External(node.id))
        if isinstance(node, ast.Attribute):
            return member(self.static(node.value), node.attr)
        return None


def _origin(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def in_module(function: FunctionInfo) -> bool:
    """Whether a function is a torch module's method."""
    return function.owner is not None and function.owner.is_module


class Class(NamedTuple):
    """A class of the linted files."""

    info: ClassInfo


class Function(NamedTuple):
    """A function of the linted files, bound to an object if it is a method of one."""

    info: FunctionInfo
    owner: Obj | None = None


class Namespace(NamedTuple):
    """A module of the linted files."""

    module: Module


class Super(NamedTuple):
    """`super()` in a method of a class of the linted files."""

    info: ClassInfo


OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def arithmetic(op: ast.operator, left: Const, right: Const) -> Const | None:
    """The value of an operation on two literal numbers."""
    a, b = left.value, right.value
    if type(a) not in (int, float) or type(b) not in (int, float):
        return None
    try:
        if isinstance(op, ast.Pow):
            return Const(float(a) ** b) if abs(b) <= 64 else None
        return Const(OPERATIONS[type(op)](a, b)) if type(op) in OPERATIONS else None
    except (ArithmeticError, ValueError):
        return None


def member(value: Any, name: str) -> Any:
    """An attribute of a module, a class, or a name from outside."""
    if isinstance(value, External):
        return External(f"{value.name}.{name}")
    if isinstance(value, Namespace):
        found = value.module.top(name)
        if found is None and name in value.module.assigned:
            return value.module.slot(name)
        return found if found is not None else value.module.project.inside(value.module, name)
    if isinstance(value, Class):
        method = value.info.method(name)
        return Function(method) if method is not None else value.info.constant(name)
    return None
