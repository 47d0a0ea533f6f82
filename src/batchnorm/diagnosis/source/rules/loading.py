"""BN420, BN421, BN422, BN424: statistics lost on loading, in half precision, under wrappers and under checkpointing."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said, spelled
from batchnorm.diagnosis.source.project import Function
from batchnorm.diagnosis.source.rules.forwards import forwards
from batchnorm.diagnosis.source.trace import TRAIN
from batchnorm.diagnosis.source.values import Const, Obj, objects_in, options

LOST = ("running_mean", "running_var", "running_")


def filtered_statistics(facts: Facts) -> Iterator[Said]:
    """BN420: a state without its running statistics, saved or loaded with strict=False."""
    for event in facts.of("filter"):
        source = event.data["source"]
        if not _of_state(source, event.node):
            continue
        words = [c.value for test in event.data["tests"] for c in _dropped(test)]
        if not any(w in LOST for w in words):
            continue
        yield Said(
            event.function.module,
            event.node,
            "the running statistics are left out of the state: a model that loads it evaluates with the statistics "
            "that it has, which are 0 and 1 "
            "in a new one",
            "keep running_mean and running_var, or batchnorm.recalibrate(model, loader) after loading",
            sure=_loaded(facts, event.obj),
        )


def _of_state(source: object, node: ast.AST) -> bool:
    for option in options(source):
        if isinstance(option, Obj) and option.kind in ("iteration", "state"):
            return True
    return True


def _dropped(test: ast.AST) -> Iterator[ast.Constant]:
    """The strings that a key must not contain."""
    for n in ast.walk(test):
        if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.NotIn) and isinstance(n.left, ast.Constant):
            yield n.left
        if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not):
            for c in ast.walk(n.operand):
                if isinstance(c, ast.Constant) and isinstance(c.value, str):
                    yield c


def _loaded(facts: Facts, state: Obj | None) -> bool:
    return any(
        isinstance(e.data["strict"], Const)
        and e.data["strict"].value is False
        and any(o is state for o in objects_in(e.data["state"]))
        for e in facts.of("load")
    )


def half_precision(facts: Facts) -> Iterator[Said]:
    """BN421: statistics in half precision, and then a forward in train mode."""
    for event, c, level in forwards(facts):
        if c.half is None or c.mode.value != TRAIN or level != YES:
            continue
        if any(e.function.module is c.half[1].module for e in facts.of("float layers")):
            continue
        node, function = c.half
        yield Said(
            function.module,
            node,
            f"half precision holds the running statistics too, and {spelled(event.node, 40)} in line {event.line} "
            "trains: small updates are lost and "
            "large variances overflow",
            "torch.autocast for the forward, or keep batch norm layers in float32",
            sure=not c.conditional,
        )


def sync_after_ddp(facts: Facts) -> Iterator[Said]:
    """BN422: convert_sync_batchnorm on what is already wrapped in DistributedDataParallel."""
    for event in facts.of("sync"):
        if event.data.get("wrapped"):
            yield Said(
                event.function.module,
                event.node,
                "layers are converted to SyncBatchNorm after DistributedDataParallel has taken the model: it keeps "
                "the old layers' buffers",
                "convert first, then DistributedDataParallel(model)",
            )


def checkpointed(facts: Facts) -> Iterator[Said]:
    """BN424: activation checkpointing around batch norm."""
    for event in facts.of("checkpoint"):
        level = None
        for option in options(event.data["what"]):
            if isinstance(option, Obj):
                level = max(level or 0, facts.has(option) or 0)
            elif isinstance(option, Function):
                level = max(level or 0, _called_inside(facts, option))
        if level in (YES, LIKELY):
            yield Said(
                event.function.module,
                event.node,
                "activation checkpointing runs the forward again in backward: the running statistics move twice a step",
                "batchnorm.convert(model), whose layers know a recomputed forward",
                sure=level == YES and not event.data["conditional"],
            )


def _called_inside(facts: Facts, function: Function) -> int:
    """Whether a function runs batch norm layers: those that its body calls."""
    best = 0
    for event in facts.of("forward"):
        if event.function is function.info and event.obj is not None:
            best = max(best, facts.has(event.obj) or 0)
    return best
