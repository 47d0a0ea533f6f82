"""Questions about a piece of syntax, whatever it means."""

from __future__ import annotations

import ast


def name_of(node: ast.AST | None) -> str:
    """`eval` of `eval` and of `model.eval`; nothing of what is neither a name nor an attribute."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def method_of(node: ast.AST | None) -> str:
    """`eval` of the call `model.eval()`."""
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def variables(*nodes: ast.AST) -> set[str]:
    """The names of all variables."""
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}


def words(node: ast.AST) -> set[str]:
    """The names of all variables and attributes."""
    return {name_of(n) for n in ast.walk(node)} - {""}


def strings(node: ast.AST) -> list[str]:
    """The literal strings."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def reads(node: ast.AST, *names: str) -> bool:
    """Whether one of these attributes is read."""
    return any(isinstance(n, ast.Attribute) and n.attr in names and isinstance(n.ctx, ast.Load) for n in ast.walk(node))


def of_self(node: ast.AST) -> bool:
    """Whether it is an attribute of `self`."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def dotted(node: ast.AST) -> str:
    """`self.net.head`; nothing of what is not made of names and attributes alone."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*parts, node.id][::-1]) if isinstance(node, ast.Name) else ""


def spelled(node: ast.AST, longest: int = 60) -> str:
    """An expression as the source has it, shortened."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def calls_by_name(node: ast.AST, name: str) -> bool:
    """Whether a node calls a function or method of that name."""
    return isinstance(node, ast.Call) and name_of(node.func) == name


NO_CHILDREN = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)


def nodes_of(tree: ast.AST) -> list[ast.AST]:
    """A tree's nodes, outer ones first, as `ast.walk` gives them and in a third of its time."""
    found = [tree]
    for node in found:
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                found.extend(v for v in value if isinstance(v, ast.AST) and not isinstance(v, NO_CHILDREN))
            elif isinstance(value, ast.AST) and not isinstance(value, NO_CHILDREN):
                found.append(value)
    return found
