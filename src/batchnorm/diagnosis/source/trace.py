"""What an interpretation of the program leaves behind: events, the situations they happen in, a summary a function."""

from __future__ import annotations

import ast
import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from batchnorm.diagnosis.source.definitions import FunctionInfo
from batchnorm.diagnosis.source.values import Obj

TRAIN, EVAL, UNKNOWN = "train", "eval", "unknown"
SWITCHED = "switched"  # train() in one branch, eval() in the other, as in `if phase == "train"`
MOST_USES = 200  # of a summary
MOST_CONTEXTS = 24  # of an event


class Test(NamedTuple):
    """A condition that code is under, and whether it holds there."""

    node: ast.expr
    holds: bool
    known: bool = False  # by a constant of the code


class Mode(NamedTuple):
    """A mode and the call that set it; no call where it is what a constructor gives."""

    value: str
    node: ast.AST | None = None
    function: FunctionInfo | None = None
    sure: bool = True  # not of one of several objects
    lapse: Mode | None = None  # the eval() of one of two branches that differ
    test: ast.expr | None = None  # what they depend on

    @property
    def place(self) -> str:
        """The line and the file of the call."""
        file = self.function.module.file if self.function is not None else "the program"
        return f"line {getattr(self.node, 'lineno', 0)} of {file}"


class Call(NamedTuple):
    """A call, and the function that it is in."""

    node: ast.Call
    function: FunctionInfo


class Freeze(NamedTuple):
    """Where an object was frozen by requires_grad, and under which conditions, callers' ones included."""

    node: ast.AST
    function: FunctionInfo
    tests: tuple[Test, ...] = ()
    call: Call | None = None  # of a helper that freezes what it is given
    flag: Test | None = None  # of a helper that thaws too, what the caller says


class Context(NamedTuple):
    """One situation in which an event happens, of all the callers' ones."""

    obj: Obj
    mode: Mode
    layers: Mode | None  # the mode of the model's batch norm layers, where it was set apart
    no_grad: bool | None
    second: bool  # in a loop's second round
    one_rank: bool
    conditional: bool
    frozen: tuple[tuple[Obj, Freeze], ...]
    half: tuple[ast.AST, FunctionInfo, bool] | None
    loaded: bool
    function: FunctionInfo
    at: Call | None = None  # of a forward in a model's own method: who calls that
    call: Call | None = None  # of a forward of what a function was given: the call that gave it
    quiet: tuple[Obj, ...] = ()  # parts that the function has put in eval


@dataclass(eq=False)
class Event:
    """Something that the program does to an object, once per place in the source."""

    kind: str
    node: Any
    function: FunctionInfo
    obj: Obj | None = None
    data: dict[str, Any] = field(default_factory=dict)
    contexts: list[Context] = field(default_factory=list)

    @property
    def line(self) -> int:
        """Where."""
        return getattr(self.node, "lineno", 1)

    @property
    def loop(self) -> ast.For | None:
        """The innermost `for` around it."""
        return next((n for n in reversed(self.data["loops"]) if isinstance(n, ast.For)), None)

    def seen(self, context: Context) -> None:
        """Add a situation."""
        if len(self.contexts) < MOST_CONTEXTS:
            self.contexts.append(context)


class Use(NamedTuple):
    """A forward of a slot whose mode, or whose past, only a caller knows."""

    event: Event
    mode: Mode | None  # where the function itself set it
    here: Context


@dataclass(eq=False)
class Summary:
    """What a call of a function does to the objects it is given."""

    uses: dict[tuple[Any, ...], Use] = field(default_factory=dict)
    modes: dict[Obj, Mode] = field(default_factory=dict)
    inside: dict[Obj, Mode] = field(default_factory=dict)  # the modes at a `yield`
    layers: dict[Obj, Mode] = field(default_factory=dict)
    frozen: dict[Obj, Freeze] = field(default_factory=dict)
    thawed: set[Obj] = field(default_factory=set)
    half: dict[Obj, tuple[ast.AST, FunctionInfo, bool]] = field(default_factory=dict)
    loaded: set[Obj] = field(default_factory=set)
    assigned: dict[tuple[Obj, str], Any] = field(default_factory=dict)
    writes: list[tuple[Event, Any, list[Any]]] = field(default_factory=list)
    returns: list[Any] = field(default_factory=list)
    born: dict[Obj, tuple[Test, ...]] = field(default_factory=dict)  # the conditions that what it makes is made under
    moves: bool = False  # a forward or an unknown call happens inside


@dataclass(eq=False)
class State:
    """What is known at a point of a function."""

    env: dict[str, Any] = field(default_factory=dict)
    heap: dict[tuple[Obj, str], Any] = field(default_factory=dict)
    modes: dict[Obj, Mode] = field(default_factory=dict)
    layers: dict[Obj, Mode] = field(default_factory=dict)
    frozen: dict[Obj, Freeze] = field(default_factory=dict)
    half: dict[Obj, tuple[ast.AST, FunctionInfo, bool]] = field(default_factory=dict)
    loaded: frozenset[Obj] = frozenset()
    no_grad: bool | None = False
    version: int = 1
    dead: bool = False

    def copy(self) -> State:
        """A state that goes its own way."""
        new = copy.copy(self)
        for name, held in vars(self).items():
            if isinstance(held, dict):
                setattr(new, name, dict(held))
        return new


SLOTS = ("parameter", "attribute", "global", "self")


def join(a: State, b: State, choose: Any) -> State:
    """What is known after either of two branches."""
    if a.dead:
        return b
    if b.dead:
        return a
    out = State(version=max(a.version, b.version), loaded=a.loaded | b.loaded)
    out.no_grad = a.no_grad if a.no_grad == b.no_grad else None
    _join_values(a.env, b.env, out.env, choose)
    _join_values(a.heap, b.heap, out.heap, choose)
    _join_modes(a.modes, b.modes, out.modes)
    _join_modes(a.layers, b.layers, out.layers)
    for obj, only in (a.layers | b.layers).items():
        # Frozen under a condition is frozen for whom it holds.
        if only.value == EVAL and out.layers[obj].value == UNKNOWN and (obj not in a.layers or obj not in b.layers):
            out.layers[obj] = only
    out.frozen = dict(a.frozen)
    freeze(out.frozen, b.frozen)
    out.half = {k: (*v[:2], v[2] or k not in a.half or k not in b.half) for k, v in (a.half | b.half).items()}
    return out


def freeze(held: dict[Obj, Freeze], new: dict[Obj, Freeze]) -> None:
    """Add freezes; one that happens under fewer conditions stays."""
    for obj, later in new.items():
        if obj not in held or len(held[obj].tests) >= len(later.tests):
            held[obj] = later


_ABSENT = object()


def _switched(a: Mode, b: Mode) -> Mode:
    """The mode after two branches that differ; its call is the one that trains."""
    trains = next((m for m in (a, b) if m.value in (TRAIN, SWITCHED)), None)
    evals = next((m for m in (a, b) if m.value == EVAL), a.lapse or b.lapse)
    test = a.test or b.test
    if trains is None or UNKNOWN in (a.value, b.value) or trains.node is None:
        return Mode(UNKNOWN, lapse=evals, test=test)
    return Mode(SWITCHED, trains.node, trains.function, trains.sure, lapse=evals, test=test)


def _join_values(a: dict[Any, Any], b: dict[Any, Any], out: dict[Any, Any], choose: Any) -> None:
    for key in a.keys() | b.keys():
        x, y = a.get(key, _ABSENT), b.get(key, _ABSENT)
        out[key] = x if x is y or y is _ABSENT else y if x is _ABSENT else choose([x, y])


def _join_modes(a: dict[Obj, Mode], b: dict[Obj, Mode], out: dict[Obj, Mode]) -> None:
    for obj in a.keys() | b.keys():
        x, y = a.get(obj), b.get(obj)
        if x is None or y is None:
            only = x or y
            lapse = only if only is not None and only.value == EVAL else None
            out[obj] = only if only is not None and obj.kind not in SLOTS else Mode(UNKNOWN, lapse=lapse)
        else:
            out[obj] = x if x.value == y.value else _switched(x, y)
