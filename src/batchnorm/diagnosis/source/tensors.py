"""Arithmetic on tensor formulas: what `m * r + (1 - m) * r`, `r.lerp(s, w)` and in-place chains come to."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

from batchnorm.diagnosis.source.values import (
    MOST_TERMS,
    Atom,
    Const,
    Form,
    Obj,
    Poly,
    Scalar,
    add,
    inverse,
    poly,
    scalar,
    times,
)

ONE: Poly = {(): 1.0}
SAME = re.compile(r"detach|contiguous|reshape|squeeze|view(_as)?|expand_as|cuda|cpu|numpy|requires_grad_")
COPIES = ("clone", "new_tensor")
CONVERTS = ("to", "float", "double", "half", "bfloat16", "type", "type_as", "long", "int")
IN_PLACE = ("mul_", "add_", "sub_", "div_", "copy_", "lerp_", "fill_", "zero_", "set_", "assign")
MULTIPLY, DIVIDE, ADD, SUBTRACT = ast.Mult(), ast.Div(), ast.Add(), ast.Sub()
OPERATORS: dict[str, ast.operator] = dict(mul=MULTIPLY, multiply=MULTIPLY, div=DIVIDE, true_divide=DIVIDE)
OPERATORS |= dict(add=ADD, sub=SUBTRACT, subtract=SUBTRACT)


def frozen_form(form: Form, version: int) -> Form:
    """A copy: what the buffer holds now, not the buffer."""
    terms = {a._replace(version=version) if a.version == 0 else a: p for a, p in form.terms.items()}
    return replace(form, terms=terms, live=False)


def other(owner: Any = None) -> Form:
    """Something unknown, or the tensor that an unknown object is."""
    return Form({Atom("other", owner if isinstance(owner, Obj) else object()): ONE})


def combine(op: ast.operator, left: Any, right: Any, version: int) -> Any:
    """A binary operation on values; None if nothing is known of the result."""
    a = frozen_form(left, version) if isinstance(left, Form) else None
    b = frozen_form(right, version) if isinstance(right, Form) else None
    if a is None and b is None:
        p, q = poly(left), poly(right)
        if p is None or q is None:
            return None
        if isinstance(op, ast.Add | ast.Sub):
            return scalar(add(p, q, 1.0 if isinstance(op, ast.Add) else -1.0))
        if isinstance(op, ast.Mult):
            return scalar(times(p, q))
        if isinstance(op, ast.Div):
            inv = inverse(q)
            return None if inv is None else scalar(times(p, inv))
        return None
    if isinstance(op, ast.Add | ast.Sub):
        sign = 1.0 if isinstance(op, ast.Add) else -1.0
        if a is not None and b is not None:
            return _sum(a, b, sign)
        return _shifted(a, 1.0, right, sign) if a is not None else _shifted(b, sign, left, 1.0) if b else None
    if isinstance(op, ast.Mult):
        if a is None or b is None:
            return _scaled(a, right) if a is not None else _scaled(b, left) if b is not None else None
        return other()
    if isinstance(op, ast.Div) and a is not None and b is None:
        p = poly(right)
        inv = inverse(p) if p is not None else None
        out = _scaled(a, scalar(inv) if inv is not None else None)
        out.divided = True
        return out
    return other()


def _shifted(form: Form, weight: float, rest: Any, rest_weight: float) -> Form:
    """A formula and something that is none."""
    if isinstance(rest, Const) and rest.value in (0, 0.0):
        return form
    terms = {k: times(p, {(): weight}) for k, p in form.terms.items()}
    terms[Atom("other", rest if isinstance(rest, Obj) else object())] = {(): rest_weight}
    return replace(form, terms=terms, live=False)


def _sum(a: Form, b: Form, sign: float) -> Form:
    terms = dict(a.terms)
    mixed = a.mixed or b.mixed
    for k, p in b.terms.items():
        mixed |= k in terms
        terms[k] = add(terms.get(k, {}), p, sign)
    terms = {k: p for k, p in terms.items() if p}
    if len(terms) > MOST_TERMS:
        return other()
    return Form(terms, False, mixed, a.converted or b.converted, a.divided or b.divided)


def _scaled(form: Form, factor: Any) -> Form:
    p = poly(factor)
    if p is None:
        p = {(factor if isinstance(factor, Obj) else object(),): 1.0}
    return replace(form, terms={k: times(q, p) for k, q in form.terms.items()}, live=False)


def method(form: Form, name: str, args: list[Any], keywords: dict[str, Any], version: int) -> Form | None:
    """What a tensor's method returns; None for a method that is not followed. In-place names give the new content."""
    if SAME.fullmatch(name):
        return replace(form, terms=dict(form.terms))
    if name in COPIES:
        return frozen_form(form, version)
    if name in CONVERTS:
        new = replace(form, terms=dict(form.terms)) if name == "to" else frozen_form(form, version)
        return replace(new, converted=True)
    base = name.removesuffix("_")
    first = args[0] if args else keywords.get("other", keywords.get("end", keywords.get("src")))
    if base in ("copy", "set", "assign"):
        return frozen_form(first, version) if isinstance(first, Form) else other(first)
    if base in ("fill", "zero"):
        return other()
    if base in ("add", "sub", "subtract"):
        alpha = keywords.get("alpha")
        if len(args) == 2:  # the old spelling: add_(alpha, other)
            alpha, first = args[0], args[1]
        first = first if alpha is None else combine(ast.Mult(), first, alpha, version)
    if base in OPERATORS:
        return combine(OPERATORS[base], form, first, version)
    if base == "lerp":
        weight = args[1] if len(args) > 1 else keywords.get("weight")
        if weight is None:
            return other()
        first = first if isinstance(first, Form) else other(first)
        old = combine(ast.Mult(), form, combine(ast.Sub(), Const(1.0), weight, version), version)
        return combine(ast.Add(), old, combine(ast.Mult(), first, weight, version), version)
    return None


def function(name: str, args: list[Any], keywords: dict[str, Any], version: int) -> Form | None:
    """What torch.lerp, torch.add and the like return."""
    if not args and "input" in keywords:
        args = [keywords["input"], *args]
    if args and isinstance(args[0], Form):
        return method(args[0], name, args[1:], keywords, version)
    turned = len(args) > 1 and isinstance(args[1], Form) and name in ("mul", "add")
    return method(args[1], name, args[:1], keywords, version) if turned else None


def substitute(value: Scalar, replace: Any) -> Any:
    """A scalar polynomial of parameters with a call's arguments in their place."""
    total: Any = None
    for monomial, weight in value.key:
        product: Any = Const(weight)
        for unknown in monomial:
            if not isinstance(unknown, Obj):
                return None
            product = combine(ast.Mult(), product, replace(unknown), 0)
            if product is None:
                return None
        total = product if total is None else combine(ast.Add(), total, product, 0)
        if total is None:
            return None
    return total
