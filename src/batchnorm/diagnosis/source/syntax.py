"""One file of Python as a tree, with the few questions the rules ask of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

TORCH_LAYERS = {f"{lazy}BatchNorm{n}d" for lazy in ("", "Lazy") for n in (1, 2, 3)} | {"SyncBatchNorm", "_BatchNorm"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass
class Source:
    """A parsed file: its text, its tree, and each node's parent."""

    name: str
    text: str
    tree: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, text: str, name: str = "<text>") -> Source:
        """Read a file's text; raises `SyntaxError`, `ValueError` or `RecursionError` for what is no Python."""
        return cls.of(ast.parse(text), text, name)

    @classmethod
    def of(cls, tree: ast.Module, text: str, name: str) -> Source:
        """A tree that somebody else parsed."""
        source = cls(name, text, tree)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                source.parents[child] = node
        return source

    @cached_property
    def imported(self) -> dict[str, str]:
        """What each imported name stands for, in full: `nn` for `torch.nn`."""
        names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    names[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{node.module or ''}.{alias.name}"
        return names

    def full(self, node: ast.AST) -> str:
        """A dotted name with its import resolved, or "" for what is no plain name."""
        name = dotted(node)
        head, _, rest = name.partition(".")
        whole = self.imported.get(head, head)
        return f"{whole}.{rest}" if rest else whole

    def is_torch_layer(self, node: ast.AST) -> bool:
        """Whether a name is one of torch's batch norm classes."""
        name = self.full(node)
        return name.startswith("torch.") and name.rsplit(".", 1)[-1] in TORCH_LAYERS

    def function(self, node: ast.AST) -> ast.AST:
        """The function around a node, or the module."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, FUNCTIONS):
                return node
        return self.tree

    def inside(self, node: ast.AST, kind: type | tuple[type, ...]) -> Iterator[ast.AST]:
        """The nodes of a kind around a node, inmost first."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, kind):
                yield node

    @cached_property
    def calls(self) -> list[ast.Call]:
        """Every call of the file."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]

    def mentions(self, *words: str) -> bool:
        """Whether a word occurs anywhere in the text, comments and strings included: in doubt, yes."""
        return any(word in self.text for word in words)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for attributes of a name, else ""."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def method(call: ast.AST) -> tuple[str, ast.AST | None]:
    """The name of a called method and what it is called on."""
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        return call.func.attr, call.func.value
    return "", None


def number(node: ast.AST | None) -> float | None:
    """The value of a literal number, also a negative one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # pyright: ignore[reportArgumentType]
    return None


def keyword(call: ast.Call, name: str, position: int | None = None) -> ast.AST | None:
    """An argument of a call by its name or place."""
    for item in call.keywords:
        if item.arg == name:
            return item.value
    plain = not any(isinstance(a, ast.Starred) for a in call.args)
    return call.args[position] if position is not None and plain and len(call.args) > position else None


def same(a: ast.AST, b: ast.AST) -> bool:
    """Whether two expressions are spelled the same, read or written."""
    return ast.dump(a).replace("Store()", "Load()") == ast.dump(b).replace("Store()", "Load()")


def is_eval(call: ast.AST) -> bool:
    """`x.eval()` or `x.train(False)`."""
    name, _ = method(call)
    if not isinstance(call, ast.Call):
        return False
    off = keyword(call, "mode", 0)
    return (name == "eval" and not call.args) or (
        name == "train" and isinstance(off, ast.Constant) and off.value is False
    )


def is_train(call: ast.AST) -> bool:
    """`x.train()` or `x.train(True)`."""
    name, _ = method(call)
    if name != "train" or not isinstance(call, ast.Call):
        return False
    on = keyword(call, "mode", 0)
    return (on is None and not call.keywords) or (isinstance(on, ast.Constant) and on.value is True)


def without_gradients(source: Source, node: ast.AST) -> bool:
    """Whether a node is inside `with torch.no_grad():`, `inference_mode`, or a function so decorated."""
    for outer in source.inside(node, (ast.With, ast.AsyncWith, ast.FunctionDef)):
        if isinstance(outer, ast.FunctionDef):
            candidates = outer.decorator_list
        else:
            candidates = [item.context_expr for item in outer.items]  # pyright: ignore[reportAttributeAccessIssue]
        for item in candidates:
            target = item.func if isinstance(item, ast.Call) else item
            if source.full(target) in ("torch.no_grad", "torch.inference_mode"):
                return True
    return False
