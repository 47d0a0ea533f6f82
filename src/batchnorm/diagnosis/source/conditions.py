"""Conditions as claims about options, so that two branches are seen to exclude each other."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from batchnorm.diagnosis.source.trace import Test
from batchnorm.diagnosis.source.values import Const, Obj

TRUTH = "truth"  # of an option that a condition is, alone


class Claim(NamedTuple):
    """An option is, or is not, a value; an option is known by its last name, as files pass it on."""

    subject: str
    value: tuple[str, Any]
    holds: bool


def parts(test: Test) -> Iterator[Test]:
    """The conditions that all hold where a test does, without `not`."""
    node, holds, known = test
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from parts(Test(node.operand, not holds, known))
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) == holds:
        for value in node.values:
            yield from parts(Test(value, holds, known))
    else:
        yield test


def claims(tests: Iterable[Test]) -> list[Claim]:
    """What tests claim together."""
    return [_claim(part) for test in tests for part in parts(test)]


def exclusive(one: Iterable[Test], other: Iterable[Test]) -> bool:
    """Whether two places are never both reached in a run: `if mode == "freeze"` and `if mode == "train"`."""
    others = claims(other)
    return any(_contradict(a, b) for a in claims(one) for b in others)


def implied(tests: Iterable[Test], by: Iterable[Test]) -> bool:
    """Whether tests, at least one, hold wherever others do."""
    asked, known = claims(tests), set(map(repr, claims(by)))
    return bool(asked) and all(repr(c) in known for c in asked)


def decided(test: Test, given: dict[str, Any]) -> bool | None:
    """Whether a test holds for literal values by name; None where they do not say."""
    found = [_decided(claim, given) for claim in claims([test])]
    return False if False in found else None if None in found or not found else True


def around(tree: ast.AST, node: ast.AST) -> list[Test] | None:
    """The tests that a node is under inside a tree; None where it is not inside."""
    for child in ast.iter_child_nodes(tree):
        found = [] if child is node else around(child, node)
        if found is not None:
            if not isinstance(tree, ast.If | ast.IfExp) or child is tree.test:
                return found
            return [Test(tree.test, child is tree.body if isinstance(tree, ast.IfExp) else child in tree.body), *found]
    return None


def passed(tests: Iterable[Test], given: dict[str, Any]) -> list[Test] | None:
    """What a function's tests are to its caller: those that its arguments leave open; None where one does not hold."""
    left = []
    for test in tests:
        plain = not any(isinstance(n, ast.Attribute | ast.Subscript | ast.Call) for n in ast.walk(test.node))
        known = decided(test, {n: v.value for n, v in given.items() if isinstance(v, Const)}) if plain else None
        if known is False:
            return None
        if known is None:
            left.append(test._replace(node=_Renamed(given).visit(copy.deepcopy(test.node))))
    return left


class _Renamed(ast.NodeTransformer):
    """Parameters by what a caller calls the arguments."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self.given.get(node.id)
        return ast.Name(value.name, node.ctx) if isinstance(value, Obj) and value.name.isidentifier() else node


def _decided(claim: Claim, given: dict[str, Any]) -> bool | None:
    if claim.subject not in given:
        return None
    is_so = bool(given[claim.subject]) if claim.value[0] == TRUTH else _literal(given[claim.subject]) == claim.value
    return is_so == claim.holds


def _claim(test: Test) -> Claim:
    node, holds = test.node, test.holds
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.comparators[0], ast.Constant):
        op, value = node.ops[0], node.comparators[0].value
        if isinstance(op, ast.Eq | ast.Is | ast.NotEq | ast.IsNot):
            holds ^= isinstance(op, ast.NotEq | ast.IsNot)
            if isinstance(value, bool):
                return Claim(_subject(node.left), (TRUTH, True), holds == value)
            return Claim(_subject(node.left), _literal(value), holds)
    return Claim(_subject(node), (TRUTH, True), holds)


def _literal(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value


def _subject(node: ast.AST) -> str:
    """`weights` of `weights`, `args.weights`, `self.opt.weights` and `config["weights"]`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return ast.unparse(node)


def _contradict(a: Claim, b: Claim) -> bool:
    if a.subject != b.subject:
        return False
    if a.value == b.value:
        return a.holds != b.holds
    return a.holds and b.holds and TRUTH not in (a.value[0], b.value[0])
