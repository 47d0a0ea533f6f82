"""BN401 and BN402: running statistics written by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.fixes import Edit
from batchnorm.diagnosis.source.syntax import method_of
from batchnorm.diagnosis.source.trace import EVAL
from batchnorm.diagnosis.source.values import Atom, Const, Form, Obj

RECALIBRATE = "batchnorm.recalibrate(model, loader)"


def changes_nothing(facts: Facts) -> Iterator[Said]:
    """BN401: a value that comes to the statistic itself, each time the line runs."""
    for event in facts.of("write"):
        if event.data["atom"].kind != "statistic" or not event.data["values"]:
            continue
        if not all(_is_itself(now, atom) for now, atom, _ in event.data["values"]):
            continue
        forms = [now for now, _, _ in event.data["values"]]
        mixed = any(f.mixed for f in forms)
        if not mixed and (any(f.converted for f in forms) or _moved(event.node)):
            continue  # another dtype or device
        after_eval = any(mode is not None and mode.value == EVAL for _, _, mode in event.data["values"])
        what = "mixed with themselves: m * r + (1 - m) * r is r" if mixed else "written with their own values"
        since = ", and after eval() no forward moves them either" if after_eval else ""
        yield said(
            event,
            f"running statistics are {what}, so nothing changes{since}",
            f"delete the line: a forward in train mode moves them, {RECALIBRATE} measures them anew",
            edit=_without(event.node),
        )


def _moved(node: ast.AST) -> bool:
    """Whether a statement takes what it writes from one device to another, and does not calculate."""
    value = node.value if isinstance(node, ast.Assign) else None
    return isinstance(value, ast.Call) and method_of(value) in ("cpu", "cuda", "to", "pin_memory", "contiguous")


def _is_itself(form: Form, atom: Atom) -> bool:
    if len(form.terms) != 1 or form.divided:
        return False
    ((found, weight),) = form.terms.items()
    return found == atom and set(weight) == {()} and abs(weight[()] - 1) < 1e-9


def _without(node: Any) -> Edit | None:
    """The statement becomes `pass`."""
    several = isinstance(node, ast.Assign) and len(node.targets) > 1
    if several or not (isinstance(node, ast.Assign | ast.Expr) or method_of(node)) or node.end_lineno is None:
        return None
    new = "None" if isinstance(node, ast.Call) else "pass"
    return Edit(node.lineno, node.col_offset, node.end_lineno, node.end_col_offset or 0, new)


def after_eval(facts: Facts) -> Iterator[Said]:
    """BN402: an update rule by hand while the model is in eval mode."""
    for event in facts.of("write"):
        atom: Atom = event.data["atom"]
        values = event.data["values"]
        if atom.kind != "statistic" or not values or isinstance(event.data.get("plain"), Const):
            continue
        if not all(mode is not None and mode.value == EVAL and mode.node is not None for _, _, mode in values):
            continue
        if all(_is_itself(now, at) for now, at, _ in values) or not _updates(values, atom):
            continue
        if event.data.get("in_place") == "copy_" and isinstance(event.data.get("argument"), Const):
            continue  # put back
        yield said(
            event,
            f"{atom.name} is updated by hand after eval(): the layer itself updates it in every forward in train mode",
            RECALIBRATE,
        )


def _updates(values: list[Any], atom: Atom) -> bool:
    """The old value, weighted, and something else."""
    for now, current, _ in values:
        own = [a for a in now.terms if a.kind == "statistic" and a.owner is current.owner and a.name == atom.name]
        if not own or len(now.terms) < 2:
            return False
        if any(a.kind == "statistic" and isinstance(a.owner, Obj) and a.owner is not current.owner for a in now.terms):
            return False  # a mixture of two layers' statistics
    return True
