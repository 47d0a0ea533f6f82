"""BN440, BN441: eval mode with statistics that were never measured, and without any."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called, file_of, said
from batchnorm.diagnosis.source.rules.forwards import forwards
from batchnorm.diagnosis.source.rules.loaders import loaders_of
from batchnorm.diagnosis.source.syntax import spelled
from batchnorm.diagnosis.source.trace import EVAL, Event
from batchnorm.diagnosis.source.values import Const, Obj


def reset_and_evaluated(facts: Facts) -> Iterator[Said]:
    """BN440: reset_running_stats(), and then a forward in eval mode."""
    for event in facts.of("unmeasured"):
        by = event.data["by"]
        if facts.uses(event.function, "track_running_stats") or event.obj is None or not facts.likely(event.obj):
            continue
        yield said(
            event,
            f"{spelled(event.node)} sets mean 0 and variance 1, and {called(by)} in line {by.line} of {file_of(by)} "
            "evaluates with these: no forward in train mode comes between",
            "batchnorm.recalibrate(model, loader) after it",
            sure=facts.has(event.obj) == YES and not event.data["conditional"],
        )


def alone_without_statistics(facts: Facts) -> Iterator[Said]:
    """BN441: track_running_stats=False, and single samples in inference."""
    layers = [
        e
        for e in facts.of("layer")
        if e.data["keywords"].get("track_running_stats") == Const(False) and e.data["name"].startswith("torch")
    ]
    for event, c, _ in forwards(facts) if layers else ():
        if c.mode.value != EVAL or facts.trains(event) or not _single(facts, event):
            continue
        for layer in layers:
            owner = layer.function.owner
            if owner is not None and facts.holds(c.obj, owner):
                yield Said(
                    layer.function.module,
                    layer.node,
                    f"track_running_stats=False normalises with the batch in eval mode too, and {called(event)} in "
                    f"line {event.line} of {file_of(event)} has a batch of one sample",
                    "track_running_stats=True, or nn.GroupNorm",
                    sure=False,
                )
                break


def _single(facts: Facts, event: Event) -> bool:
    """Whether a forward is given `x.unsqueeze(0)`, `x[None]`, or the batches of a loader of single samples."""
    given = [v for v in event.data["inputs"] if isinstance(v, Obj)]
    made = [v.node for v in given if v.kind in ("unknown", "external") and v.node is not None]
    if any(_adds_a_batch(n) for node in (event.node, *made) for n in ast.walk(node)):
        return True
    return any(loader.sizes(facts) == [1] for loader in loaders_of(facts, event))


def _adds_a_batch(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "unsqueeze":
        at = node.args[1:] if spelled(node.func.value) == "torch" else node.args
        return bool(at) and isinstance(at[0], ast.Constant) and at[0].value == 0
    if not isinstance(node, ast.Subscript):
        return False
    first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
    return isinstance(first, ast.Constant) and first.value is None
