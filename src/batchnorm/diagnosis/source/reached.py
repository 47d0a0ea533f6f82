"""Which functions and classes a run of the linted files' programs reaches: what the names in reached code mean."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from batchnorm.diagnosis.source.definitions import Class, ClassInfo, Function, FunctionInfo, Module, Namespace
from batchnorm.diagnosis.source.names import last
from batchnorm.diagnosis.source.syntax import name_of, nodes_of
from batchnorm.diagnosis.source.values import External

Info = FunctionInfo | ClassInfo | Module
NO_PROGRAM = ("setup.py", "conf.py", "conftest.py")
OWN_NAMES = ("globals", "eval", "exec", "locals", "vars")  # what finds a function or class of the file by its name
BY_FILE = frozenset(
    ("import_module", "__import__", "execfile", "getmembers", "instantiate", "locate", "spec_from_file_location")
)
RUN_BY_TORCH = ("forward", "train", "eval", "state_dict", "load_state_dict", "extra_repr")
DEEPEST_STAR = 3
OWN_BASES = ("torch.nn.", "torch.utils.data.", "object", "abc.", "ABC")


class Reached:
    """Everything is reached in a library, which has no program but its tests; in others, what the programs name."""

    def __init__(self, modules: list[Module]) -> None:
        self._attributes: set[str] = set()
        self._done: set[int] = set()
        self._waiting: dict[str, list[FunctionInfo]] = defaultdict(list)
        self._any_method = False
        self._all = modules
        imported = {m for module in modules for m in _imports(module)}
        programs = [m for m in modules if m.file not in NO_PROGRAM and _runs(m, m in imported)]
        self._queue: list[Info] = [*programs]
        while self._queue:
            self._take(self._queue.pop())
        trains = any("backward" in m.text for m in modules)
        alone = all(m.file.startswith("test_") for m in programs)
        self.library = alone or (trains and "backward" not in self._attributes)

    def __contains__(self, info: FunctionInfo) -> bool:
        """Whether a function, or a file's own code, is reached."""
        while info.outer is not None and info.owner is None and info.outer is not info.module.body:
            info = info.outer
        return self.library or id(info.node) in self._done

    def _take(self, info: Info) -> None:
        module, node = (info, info.tree) if isinstance(info, Module) else (info.module, info.node)
        if id(node) in self._done:
            return
        self._done.add(id(node))
        if isinstance(info, Module):
            self._enter(info)
        elif isinstance(info, ClassInfo):
            self._members(info)
        for inner in nodes_of(node) if isinstance(info, FunctionInfo) else _outside_functions(node):
            if isinstance(inner, ast.Name):
                self._name(module, inner.id)
            elif isinstance(inner, ast.Attribute):
                self._attribute(module, inner)
            elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
                self._by_name(module, inner, inner.func.id)
            elif isinstance(inner, ast.ImportFrom) and isinstance(info, FunctionInfo):  # branches may import other ones
                self._meant(*(module.imported_from(inner, alias.name) for alias in inner.names))

    def _name(self, module: Module, name: str) -> None:
        if name in BY_FILE:
            self._queue.extend(i for m in self._all for i in (m, *m.classes, *m.functions))
        self._meant(module.top(name))

    def _attribute(self, module: Module, node: ast.Attribute) -> None:
        if node.attr == "__dict__":
            self._names_of(module, node.value)
        elif node.attr in BY_FILE:
            self._name(module, node.attr)
        elif node.attr not in self._attributes:
            self._attributes.add(node.attr)
            self._queue.extend(self._waiting.pop(node.attr, ()))
        first: ast.expr = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if isinstance(first, ast.Name) and isinstance(module.top(first.id), Namespace | External | Class):
            self._meant(module.static(node))

    def _by_name(self, module: Module, call: ast.Call, function: str) -> None:
        """`globals()[name]`, `getattr(models, name)`."""
        if function in OWN_NAMES and not (function == "vars" and call.args):
            self._all_of(module)
        elif function in ("getattr", "vars") and call.args:
            given = call.args[1] if len(call.args) > 1 else None
            if isinstance(given, ast.Constant):
                self._attribute(module, ast.Attribute(call.args[0], str(given.value)))
            else:
                self._names_of(module, call.args[0])

    def _names_of(self, module: Module, of: ast.expr) -> None:
        """All that may be asked of something by its name: of a file all that it names, of an object all methods."""
        own = isinstance(of, ast.Name) and of.id in ("self", "cls")
        found = None if own else module.static(of)
        if isinstance(found, Namespace):
            self._all_of(found.module)
        elif not isinstance(of, ast.Name) or own or isinstance(found, Class):
            self._any_method = True
            self._queue.extend(m for waiting in self._waiting.values() for m in waiting)

    def _all_of(self, module: Module, depth: int = 0) -> None:
        """Everything that a file defines or imports."""
        self._queue.extend((*module.classes, *module.functions))
        self._meant(*map(module.top, [*module.names]))
        for star in module.starred if depth < DEEPEST_STAR else ():
            self._all_of(star, depth + 1)

    def _meant(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, Class | Function):
                self._queue.append(value.info)
            elif isinstance(value, Namespace):
                self._queue.append(value.module)
            elif isinstance(value, External) and "." in value.name:  # perhaps of a file that imports do not find
                self._queue.extend(self._by_last.get(last(value.name), ()))

    @cached_property
    def _by_last(self) -> dict[str, list[Info]]:
        """The classes and functions at the top of all files, by their names."""
        found = defaultdict[str, list[Info]](list)
        for module in self._all:
            for info in (*module.classes, *(f for f in module.functions[1:] if f.owner is None)):
                found[info.name].append(info)
        return found

    def _enter(self, module: Module) -> None:
        self._queue.extend(_imports(module))
        self._queue.extend(c for c in module.classes if c.node.decorator_list)
        for info in module.functions[1:]:
            tests = info.name.startswith("test_") and module.file.startswith("test")
            if info.outer is module.body and info.owner is None and (tests or info.decorators):
                self._queue.append(info)

    def _members(self, info: ClassInfo) -> None:
        bases = [a.name for a in info.ancestors() if isinstance(a, External)]
        hooks = any(not base.startswith(OWN_BASES) for base in bases)  # a framework runs its methods
        self._queue.extend(info.lineage[1:])
        for name, method in info.methods.items():
            now = hooks or name in RUN_BY_TORCH or name[:2] == "__" or name.startswith("test")
            if now or self._any_method or name in self._attributes:
                self._queue.append(method)
            else:
                self._waiting[name].append(method)


def _imports(module: Module) -> Iterator[Module]:
    for name in module.imports:
        found = module.project.find(name, module)
        if found is not None and found is not module:
            yield found
            for at, letter in enumerate(found.name):
                if letter == "." and (package := module.project.modules.get(found.name[:at])) is not None:
                    yield package


def _runs(module: Module, imported: bool) -> bool:
    """Whether a file is a program, or a test: it has a part for being run, or does something and nothing imports it."""
    guarded = any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in module.tree.body)
    acts = not imported and any(_acts(module, n) for n in _at_top(module.tree.body))
    return guarded or module.file.startswith("test_") or acts


def _at_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A file's own statements, those under conditions too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _at_top([*statement.body, *statement.orelse])


def _acts(module: Module, node: ast.stmt) -> bool:
    """Whether a statement does something: a loop, a call of a function, of a method of what the file made."""
    if isinstance(node, ast.For | ast.While | ast.With):
        return True
    call = getattr(node, "value", None)
    if not isinstance(call, ast.Call):
        return False
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    made = module.assigned.get(of.id, []) if isinstance(of, ast.Name) else []
    own = any(isinstance(m, ast.Call) and isinstance(module.static(m.func), Class) for m in made)
    return name_of(call.func) == "parse_args" or (
        isinstance(node, ast.Expr) and (own or isinstance(call.func, ast.Name))
    )


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The code of a class or a file without its functions' bodies."""
    stack = [*ast.iter_child_nodes(tree)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            stack.extend(node.decorator_list)
            stack.extend(node.bases if isinstance(node, ast.ClassDef) else node.args.defaults)
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))
