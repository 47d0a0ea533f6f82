"""BN420, BN421, BN422, BN424: statistics lost on loading, in half precision, under wrappers and under checkpointing."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said, said, spelled
from batchnorm.diagnosis.source.project import Function, Module, nodes_of
from batchnorm.diagnosis.source.rules.forwards import forwards
from batchnorm.diagnosis.source.trace import TRAIN
from batchnorm.diagnosis.source.values import Const, Form, Obj, objects_in, options

LOST = ("running_mean", "running_var", "running_", "running", ".running_mean", ".running_var")


def filtered_statistics(facts: Facts) -> Iterator[Said]:
    """BN420: a state without its running statistics, saved or loaded with strict=False."""
    for event in facts.of("filter"):
        dropped = any(c.value in LOST for test in event.data["tests"] for c in _dropped(test))
        if dropped or any(map(_keeps_parameters, event.data["tests"])):
            yield _left_out(event.function.module, event.node, _loaded(facts, event.obj))
    for module in facts.project.modules.values():
        for function in module.functions if "running" in module.text and "strict" in module.text else ():
            inside = (ast.FunctionDef, ast.ClassDef) if isinstance(function.node, ast.Module) else ()
            body = function.node.body if isinstance(function.node.body, list) else []
            nodes = [n for s in body if not isinstance(s, inside) for n in nodes_of(s)]
            if any(isinstance(n, ast.Call) and _not_strict(n) for n in nodes):
                yield from (_left_out(module, n, True) for n in nodes if _skips(n))
    for event in facts.of("outside"):
        value = event.data["args"][0] if event.data["name"] == "torch.save" and event.data["args"] else None
        for option in options(value):
            if _parameters_of(facts, option):
                yield _left_out(event.function.module, event.node, True)


def _left_out(module: Module, node: ast.AST, sure: bool) -> Said:
    return Said(
        module,
        node,
        "the running statistics are left out of the state: a model that loads it evaluates with the statistics "
        "that it has, which are 0 and 1 in a new one",
        "keep running_mean and running_var, or batchnorm.recalibrate(model, loader) after loading",
        sure=sure,
    )


def _keeps_parameters(test: ast.AST) -> bool:
    """`k in dict(model.named_parameters())`, which has no buffers."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.In)
        and any(isinstance(n, ast.Attribute) and n.attr == "named_parameters" for n in ast.walk(test.comparators[0]))
    )


def _not_strict(call: ast.Call) -> bool:
    """`load_state_dict(..., strict=False)`."""
    no = any(k.arg == "strict" and isinstance(k.value, ast.Constant) and k.value.value is False for k in call.keywords)
    return no and isinstance(call.func, ast.Attribute) and call.func.attr == "load_state_dict"


def _skips(node: ast.AST) -> bool:
    """`if "running_mean" in k: continue`, or a removal of the entry."""
    if not isinstance(node, ast.If) or _words_in(node.test).isdisjoint(LOST):
        return False
    gone = (ast.Continue, ast.Delete)
    pops = any(isinstance(n, ast.Attribute) and n.attr == "pop" for s in node.body for n in ast.walk(s))
    return pops or isinstance(node.body[-1], gone)


def _words_in(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _parameters_of(facts: Facts, value: object) -> bool:
    """Whether what is saved are the parameters of a model with batch norm, and nothing else."""
    if isinstance(value, Obj) and value.kind == "iteration" and "parameters" in value.name:
        return facts.has(value.info[0]) == YES
    if not isinstance(value, Obj) or value.kind not in ("dict", "list") or not value.sources:
        return False
    forms = [s for s in value.sources if isinstance(s, Form)]
    atoms = [a for f in forms for a in f.terms]
    return (
        len(forms) == len(value.sources)
        and bool(atoms)
        and all(a.kind == "parameter" and facts.has(a.owner) == YES for a in atoms)
    )


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
        node, function, maybe = c.half
        yield Said(
            function.module,
            node,
            f"half precision holds the running statistics too, and {spelled(event.node, 40)} in line {event.line} "
            "trains: small updates are lost and large variances overflow",
            "torch.autocast for the forward, or keep batch norm layers in float32",
            sure=not (c.conditional or maybe),
        )


def sync_after_ddp(facts: Facts) -> Iterator[Said]:
    """BN422: convert_sync_batchnorm on what is already wrapped in DistributedDataParallel."""
    for event in facts.of("sync"):
        if event.data.get("wrapped"):
            yield said(
                event,
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
            yield said(
                event,
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
