"""What an expression can stand for: constants, names from outside, classes, functions, objects, and tensor formulas.

An `Obj` is an object with an identity: what a constructor made, or a slot (a parameter, an attribute, a global name)
that takes its meaning from what flows into it (`sources`). A `Form` is a tensor as a weighted sum of atoms, so that
`m * r + (1 - m) * r` is seen to be `r`, however it is spelled.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

Poly = dict[tuple[Any, ...], float]
MODELS = ("parameter", "attribute", "global", "instance", "external", "result", "copy")  # kinds that may be one
STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")
MOST, SHOWN = 16, 4  # values that a name may have at once, and how many of more stand for all
MOST_TERMS = 12  # of a formula


class Const(NamedTuple):
    """A literal number, string, bool or None."""

    value: Any


class External(NamedTuple):
    """A name from outside the linted files, imports resolved: `torch.nn.BatchNorm2d`."""

    name: str


class Partial(NamedTuple):
    """`functools.partial` of a callable."""

    target: Any
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


class Tuple(NamedTuple):
    """A tuple or list with known elements."""

    items: tuple[Any, ...]


class Flag(NamedTuple):
    """`model.training`: the mode an object had when it was read."""

    obj: Obj
    mode: str | None


class ClassName(NamedTuple):
    """`m.__class__.__name__`, or the module's name in `named_modules()`."""

    obj: Any
    of_class: bool = False


class Choice(NamedTuple):
    """One of several values, of branches or of a container's elements."""

    options: tuple[Any, ...]


class Scalar(NamedTuple):
    """A number as a polynomial of unknowns, `1 - momentum`."""

    key: tuple[tuple[tuple[Any, ...], float], ...]


@dataclass(eq=False)
class Obj:
    """An object: what made it, what it belongs to, what flows into it."""

    kind: str
    name: str = ""
    parent: Obj | None = None
    info: Any = None
    node: ast.AST | None = None
    sources: list[Any] = field(default_factory=list)
    attrs: dict[str, Obj] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # of a function's result: the call's arguments
    flows: ClassVar[int] = 0  # how many values have flowed into objects

    def attr(self, name: str) -> Obj:
        """The slot of an attribute."""
        if name not in self.attrs:
            self.attrs[name] = Obj("attribute", name, self)
        return self.attrs[name]

    def flows_from(self, value: Any) -> None:
        """Record that a value was assigned."""
        if (
            value is not None
            and value is not self
            and len(self.sources) < 16
            and not any(s is value or (not isinstance(value, Obj | Form) and s == value) for s in self.sources)
        ):
            self.sources.append(value)
            Obj.flows += 1

    @property
    def path(self) -> str:
        """The name as the source spells it."""
        if self.kind == "wrapper" and isinstance(self.info, Obj):
            return self.info.path
        return f"{self.parent.path}.{self.name}" if self.parent is not None and self.kind == "attribute" else self.name


VOLATILE = Obj("unknown", "volatile")  # Variable(x, volatile=True), of which no gradient is kept


class Atom(NamedTuple):
    """A tensor of its own: a statistic or a model's parameter at a time, or something unknown."""

    kind: str  # statistic, parameter, entry, other
    owner: Any
    name: str = ""
    version: int = 0


@dataclass(eq=False)
class Form:
    """A weighted sum of tensors; `live` while it is the buffer itself and not a copy."""

    terms: dict[Atom, Poly]
    live: bool = False
    mixed: bool = False
    converted: bool = False
    divided: bool = False
    others: tuple[Form, ...] = ()  # a loop's parameters of other models than the first


def number(value: Any) -> float | None:
    """The number that a value is, if it is one for certain."""
    if isinstance(value, Const) and type(value.value) in (int, float):
        return float(value.value)
    return None


def poly(value: Any) -> Poly | None:
    """A value as a polynomial; an unknown object is its own unknown."""
    if isinstance(value, Const):
        n = number(value)
        return None if n is None else {(): n}
    if isinstance(value, Scalar):
        return dict(value.key)
    if isinstance(value, Obj) and value.kind not in ("list", "dict", "instance", "external", "state", "copy"):
        return {(value,): 1.0}
    return None


def scalar(p: Poly) -> Const | Scalar | None:
    """A polynomial as a value."""
    p = {k: v for k, v in p.items() if abs(v) > 1e-12}
    if len(p) > MOST_TERMS:
        return None
    if not p or set(p) == {()}:
        return Const(p.get((), 0.0))
    return Scalar(tuple(sorted(p.items(), key=lambda item: [id(x) for x in item[0]])))


def add(a: Poly, b: Poly, sign: float = 1.0) -> Poly:
    """The sum of two polynomials."""
    out = dict(a)
    for k, v in b.items():
        out[k] = out.get(k, 0.0) + sign * v
    return {k: v for k, v in out.items() if abs(v) > 1e-9}


def times(a: Poly, b: Poly) -> Poly:
    """The product of two polynomials; one with more terms than are followed is an unknown of its own."""
    if len(a) * len(b) > MOST_TERMS**2 or any(len(k) > MOST_TERMS for k in (*a, *b)):
        return {(object(),): 1.0}
    out: Poly = {}
    for k, v in a.items():
        for m, w in b.items():
            key = tuple(sorted((*k, *m), key=id))
            out[key] = out.get(key, 0.0) + v * w
    return {k: v for k, v in out.items() if abs(v) > 1e-9}


def inverse(a: Poly) -> Poly | None:
    """One over a number or over a single unknown."""
    if len(a) != 1 or not all(a.values()):
        return None
    return {("inverse", *k) if k else (): 1 / v for k, v in a.items()}


def choice(values: list[Any]) -> Any:
    """One value, or the choice of several; of more than are followed, the first."""
    flat: list[Any] = []
    for value in values:
        for option in value.options if isinstance(value, Choice) else (value,):
            if not any(option is f or (not isinstance(option, Obj | Form) and option == f) for f in flat):
                flat.append(option)
    known = [v for v in flat if v is not None]
    if not known:
        return None
    known = known if len(known) <= MOST else known[:SHOWN]
    return known[0] if len(flat) == 1 else Choice(tuple(known))


def options(value: Any) -> tuple[Any, ...]:
    """The values a value can be."""
    return value.options if isinstance(value, Choice) else () if value is None else (value,)


def word(values: Sequence[Any], at: int) -> str | None:
    """The literal string at a place of arguments, if one is there."""
    value = values[at].value if len(values) > at and isinstance(values[at], Const) else None
    return value if isinstance(value, str) else None


def objects_in(value: Any) -> list[Obj]:
    """The objects that a value can be, of a list all elements."""
    found: list[Obj] = []
    for option in options(value):
        if isinstance(option, Tuple):
            for item in option.items:
                found.extend(objects_in(item))
        elif isinstance(option, Obj):
            found.append(option)
    return found


def canonical(obj: Any) -> Any:
    """The object behind wrappers."""
    for _ in range(8):
        if not isinstance(obj, Obj) or obj.kind != "wrapper":
            break
        obj = obj.info
    return obj


def root(obj: Obj) -> Obj:
    """An attribute's one source, so that `self.model` and the `model` it was made from are the same."""
    for _ in range(8):
        obj = canonical(obj)
        if obj.kind == "attribute" and obj.parent is not None:
            only = obj.sources[0] if len(obj.sources) == 1 else None
            if isinstance(only, Obj) and only.kind not in ("list", "dict"):
                obj = only
                continue
            parent = root(obj.parent)
            return obj if parent is obj.parent else parent.attr(obj.name)
        break
    return obj


def owners(obj: Any) -> Iterator[Obj]:
    """An object, what it is a part of, and so on."""
    while isinstance(obj, Obj):
        yield obj
        obj = canonical(obj.parent) if obj.kind == "attribute" else None


def within(inner: Obj, outer: Obj) -> bool:
    """Whether an object is another, or a part of it."""
    at: Obj | None = inner
    for _ in range(8):
        if at is None:
            return False
        if at is outer:
            return True
        at = canonical(at.parent) if at.kind == "attribute" else None
    return False
