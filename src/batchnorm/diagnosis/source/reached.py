"""Which functions and classes a run of the linted files' programs reaches, by the names that reached code uses."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from batchnorm.diagnosis.source.definitions import Class, ClassInfo, Function, FunctionInfo, Module, Namespace
from batchnorm.diagnosis.source.syntax import name_of
from batchnorm.diagnosis.source.values import External

NO_PROGRAM = ("setup.py", "conf.py", "conftest.py")
BY_NAME = ("globals", "eval", "exec", "locals", "vars", "getattr")  # what finds a function or class by its name
NAMES = "__dict__"  # stands for all of them among the words
BY_FILE = frozenset(("import_module", "__import__", "getmembers", "instantiate", "locate", "spec_from_file_location"))
RUN_BY_TORCH = ("forward", "train", "eval", "state_dict", "load_state_dict", "extra_repr")
OWN_BASES = ("torch.nn.", "torch.utils.data.", "object", "abc.", "ABC")


class Reached:
    """Everything is reached in a library, which has no program; in others, what the programs name."""

    def __init__(self, modules: list[Module]) -> None:
        self.words: set[str] = set()
        self._done: set[int] = set()
        self._waiting: dict[str, list[FunctionInfo | ClassInfo]] = defaultdict(list)
        self._inside: list[Module] = []
        self._all = modules
        imported = {m for module in modules for m in _imports(module)}
        programs = [m for m in modules if m.file not in NO_PROGRAM and _runs(m, m in imported)]
        self._queue: list[FunctionInfo | ClassInfo | Module] = [*programs]
        while self._queue:
            self._take(self._queue.pop())
        trains = any("backward" in m.text for m in modules)
        self.library = not programs or (trains and "backward" not in self.words)

    def __contains__(self, info: FunctionInfo) -> bool:
        """Whether a function, or a file's own code, is reached."""
        while info.outer is not None and info.owner is None and info.outer is not info.module.body:
            info = info.outer
        return self.library or id(info.node) in self._done

    def _take(self, info: FunctionInfo | ClassInfo | Module) -> None:
        module, node = (info, info.tree) if isinstance(info, Module) else (info.module, info.node)
        if id(node) in self._done:
            return
        self._done.add(id(node))
        if isinstance(info, Module):
            self._enter(info)
        elif isinstance(info, ClassInfo):
            self._members(info)
        for word in _words(module, node, whole=isinstance(info, FunctionInfo)) - self.words:
            self.words.add(word)
            self._queue.extend(self._waiting.pop(word, ()))
            if word == NAMES or word in BY_FILE:
                self._queue.extend(self._all if word in BY_FILE else ())
                self._queue.extend(i for m in self._inside for i in (*m.classes, *m.functions))

    def _wait(self, name: str, info: FunctionInfo | ClassInfo, now: bool) -> None:
        if now or name in self.words or not self.words.isdisjoint((NAMES, *BY_FILE)):
            self._queue.append(info)
        else:
            self._waiting[name].append(info)

    def _enter(self, module: Module) -> None:
        self._inside.append(module)
        self._queue.extend(_imports(module))
        for info in module.classes:
            self._wait(info.name, info, bool(info.node.decorator_list))
        for name in [*module.names]:
            found = module.top(name)
            if isinstance(found, Class | Function) and found.info.name != name:  # imported under another name
                self._wait(name, found.info, False)
        for info in module.functions[1:]:
            if info.outer is module.body and info.owner is None:
                tests = info.name.startswith("test_") and module.file.startswith("test")
                self._wait(info.name, info, tests or bool(info.decorators))

    def _members(self, info: ClassInfo) -> None:
        bases = [a.name for a in info.ancestors() if isinstance(a, External)]
        hooks = any(not base.startswith(OWN_BASES) for base in bases)  # a framework runs its methods
        self._queue.extend(info.lineage[1:])
        for name, method in info.methods.items():
            now = hooks or name in RUN_BY_TORCH or name[:2] == "__" or name.startswith("test")
            self._wait(name, method, now)


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
    body = module.tree.body
    guarded = any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in body)
    acts = any(isinstance(n, ast.For | ast.While | ast.With) or _called(n) for n in body)
    return guarded or module.file.startswith("test_") or (acts and not imported)


def _called(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)


def _words(module: Module, tree: ast.AST, whole: bool) -> set[str]:
    """The names and attributes that code uses; of a class or a file without its functions' bodies."""
    found, stack = set[str](), [*ast.iter_child_nodes(tree)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not whole:
            stack.extend(node.decorator_list)
            stack.extend(node.bases if isinstance(node, ast.ClassDef) else node.args.defaults)
            continue
        if isinstance(node, ast.Attribute) and node.attr == NAMES:
            found.update(_named(module, node.value))
        elif isinstance(node, ast.Name | ast.Attribute):
            found.add(name_of(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            given = node.args[1] if len(node.args) > 1 else None
            of = node.args[0] if node.args and node.func.id in ("vars", "getattr") else None
            asked = {NAMES} if of is None else _named(module, of)
            found.update({str(given.value)} if isinstance(given, ast.Constant) else asked)
        stack.extend(ast.iter_child_nodes(node))
    return found


def _named(module: Module, of: ast.expr) -> set[str]:
    """The names that may be asked of something: a file's, all of an object's, none of options'."""
    found = module.top(of.id) if isinstance(of, ast.Name) and of.id not in ("self", "cls") else of
    if isinstance(found, Namespace) and not found.module.stars:
        return {*found.module.names}
    return {NAMES} if isinstance(found, Namespace | Class | ast.expr) else set()
