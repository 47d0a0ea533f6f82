"""Which part of a model a freeze reaches, by the tests that it is under, and how long it lasts."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from batchnorm.diagnosis.source.code_words import STEPS
from batchnorm.diagnosis.source.conditions import exclusive, implied, parts
from batchnorm.diagnosis.source.contents import LIKELY, NO, PARTS, YES
from batchnorm.diagnosis.source.definitions import ClassInfo
from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.interpreter.containers import ITERATIONS
from batchnorm.diagnosis.source.syntax import strings, variables
from batchnorm.diagnosis.source.trace import EVAL, Context, Event, Freeze, Test
from batchnorm.diagnosis.source.values import Obj, within

NORM = ("bn", "norm")
KINDS = ("isinstance", "issubclass", "type")


def reaches(facts: Facts, event: Event, part: Obj, tests: Iterable[Test]) -> int:
    """Whether a freeze reaches batch norm of a part: LIKELY where an option, or a list of names, decides."""
    own = _names(event.data["loops"])
    level, through, kept = YES, [], []
    for test in (p for t in tests for p in parts(t)):
        used, words = variables(test.node), [w for w in strings(test.node) if w.strip("._")]
        if used & own and not (used & set(KINDS)):
            (through if test.holds != _negative(test.node) else kept).extend(words)
            if not words and used - own and _by_name(event, used):
                level = LIKELY
        elif used and not test.known and not (used & set(KINDS)) and not norms(words):
            level = LIKELY
    if norms(kept) or (through and not norms(through) and not _named_part(facts, part, through)):
        return NO
    return level


def trains_apart(facts: Facts, freeze: Iterable[Test], event: Event, c: Context) -> bool:
    """Whether a training forward and a freeze are under conditions that exclude each other, or eval() comes with it."""
    freeze = tuple(freeze)
    if not freeze:
        return False
    modes = [e for e in facts.of("mode") if e.function is c.mode.function]
    if exclusive(freeze, event.data["tests"]) or any(
        e.node is c.mode.node and exclusive(freeze, e.data["tests"]) for e in modes
    ):
        return True
    evals = [e.obj for e in modes if e.data["mode"] == EVAL and implied(e.data["tests"], freeze)]
    return any(o is not None and (within(o, c.obj) or facts.same(o, c.obj)) for o in evals)


def for_a_block(freeze: Freeze) -> bool:
    """Whether weights are frozen for a `with` block."""
    function = freeze.function if freeze.call is None else freeze.call.function
    manager = function.owner is not None and function.owner.method("__exit__") is not None
    return manager or any(isinstance(n, ast.Yield) for n in ast.walk(function.node))


def lasts_for_steps(facts: Facts, event: Event, freeze: Freeze, forward: Event) -> bool:
    """Whether weights that are thawed later are frozen for several steps: not beside backward, in a round of a loop."""
    loops = [n for n in facts.loops(event, freeze.call) if not _over_parameters(n)]
    function = freeze.function if freeze.call is None else freeze.call.function
    around = loops[-1] if loops else function.node
    stack = [] if isinstance(around, ast.Module) else [*ast.iter_child_nodes(around)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Attribute) and node.attr in STEPS:
            return False
        stack.extend(() if isinstance(node, ast.For | ast.While) else ast.iter_child_nodes(node))
    return facts.uses(forward.function, "step")


def _over_parameters(loop: ast.AST) -> bool:
    """Whether a loop goes over parameters or modules."""
    heads = [loop.iter] if isinstance(loop, ast.For) else [g.iter for g in getattr(loop, "generators", ())]
    return any(isinstance(n, ast.Attribute) and n.attr in ITERATIONS for over in heads for n in ast.walk(over))


def _names(loops: Iterable[ast.AST]) -> set[str]:
    """The names that loops bind, and those that their bodies do."""
    return {n.id for loop in loops for n in ast.walk(loop) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def asks_of(event: Event, test: Test) -> bool:
    """Whether a test asks about what the loops around an event give."""
    return not variables(test.node).isdisjoint(_names(event.data["loops"]))


def norms(words: Iterable[str]) -> bool:
    """Whether one of the words is about norms."""
    return any(n in word.lower() for word in words for n in NORM)


def _negative(test: ast.AST) -> bool:
    """`not in`, `!=`, and `find(...) == -1`."""
    if not isinstance(test, ast.Compare):
        return False
    found = any(isinstance(n, ast.Attribute) and n.attr == "find" for n in ast.walk(test.left))
    if found:
        return isinstance(test.ops[0], ast.Eq | ast.Lt)
    return isinstance(test.ops[0], ast.NotIn | ast.NotEq | ast.IsNot)


def _by_name(event: Event, used: set[str]) -> bool:
    """Whether names that a loop gives with its parameters are among those used."""
    for loop in event.data["loops"]:
        heads = [(loop.target, loop.iter)] if isinstance(loop, ast.For) else []
        heads += [(g.target, g.iter) for g in getattr(loop, "generators", ())]
        for target, over in heads:
            named = any(isinstance(n, ast.Attribute) and n.attr.startswith("named_") for n in ast.walk(over))
            first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else None
            if named and isinstance(first, ast.Name) and first.id in used:
                return True
    return False


def _named_part(facts: Facts, part: Obj, words: Iterable[str]) -> bool:
    """Whether one of the words is in the name of an attribute that has batch norm."""
    of = [a for a in facts.aliases(part) for a in (a, *a.sources[:4]) if isinstance(a, Obj)]
    names = {n for o in of for n in (*PARTS, *o.attrs)}
    names |= {n for o in of if isinstance(o.info, ClassInfo) for n in o.info.self_obj.attrs}
    asked = [w for word in words for w in word.split(".") if w and w != "module"]
    return any(facts.has(part.attr(n)) == YES for n in sorted(names) if any(w in n for w in asked))
