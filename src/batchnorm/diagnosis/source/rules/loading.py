"""BN420, BN421, BN422, BN424: statistics lost on loading, in half precision, under wrappers and under checkpointing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import LIKELY, NO, YES
from batchnorm.diagnosis.source.definitions import Function, FunctionInfo, Module
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.parameters import function_at
from batchnorm.diagnosis.source.rules.averages import BUFFERS
from batchnorm.diagnosis.source.rules.forwards import forwards
from batchnorm.diagnosis.source.syntax import calls_by_name, method_of, nodes_of, reads, spelled, strings
from batchnorm.diagnosis.source.trace import TRAIN
from batchnorm.diagnosis.source.values import Const, Form, Obj, canonical, objects_in, options

SAVES = ("torch.save", "pickle.dump", "safetensors.torch.save_file", "numpy.save", "numpy.savez")
LOST = ("running_mean", "running_var", "running_", "running", ".running_mean", ".running_var")


def filtered_statistics(facts: Facts) -> Iterator[Said]:
    """BN420: a state without its running statistics, saved or loaded with strict=False."""
    for event in facts.of("filter"):
        dropped = any(word in LOST for test in event.data["tests"] for word in _dropped(test))
        if dropped or any(map(_keeps_parameters, event.data["tests"])):
            yield _left_out(event.function.module, event.node, _loaded(facts, event.obj))
    for module in facts.modules:
        for function in module.functions if "running" in module.text and "torch" in module.text else ():
            if facts.uses(function, "load_state_dict", "load", "save", "copy_") and not _has_none(facts, function):
                loops = [n for n in nodes_of(function.node) if isinstance(n, ast.For) and _drops(n)]
                loops = [n for n in loops if function_at(module, n) is function]
                sure = bool(loops) and any(isinstance(n, ast.Call) and _not_strict(n) for n in ast.walk(function.node))
                if sure or not facts.uses(function, "load_state_dict"):  # else torch refuses what is missing
                    yield from (_left_out(module, loop, sure) for loop in loops)
    for event in facts.of("outside"):
        if event.data["name"] not in SAVES or facts.uses(event.function, *BUFFERS):
            continue
        if any(facts.has(o) == YES for a in event.data["args"][:2] for o in _parameters_of(a)):
            yield _left_out(event.function.module, event.node, True)


def _has_none(facts: Facts, function: FunctionInfo) -> bool:
    """Whether a function loads states into models without batch norm alone."""
    levels = [facts.has(e.obj) for e in facts.of("load") if e.function is function]
    return NO in levels and not any(levels)


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
    if not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ast.In):
        return False
    return reads(test.comparators[0], "named_parameters")


def _not_strict(call: ast.Call) -> bool:
    """`load_state_dict(..., strict=False)`."""
    given = [k.value for k in call.keywords if k.arg == "strict"] + call.args[1:2]
    no = any(isinstance(v, ast.Constant) and v.value is False for v in given)
    return no and method_of(call) == "load_state_dict"


def _drops(loop: ast.For) -> bool:
    """Whether a loop over keys deletes, or does not take, those of running statistics."""
    over = {n.id for n in ast.walk(loop.iter) if isinstance(n, ast.Name)}
    everything = [*ast.walk(loop)]
    tests = [(n.test, n.body, n.orelse) for n in everything if isinstance(n, ast.If)]
    chosen = [t for n in ast.walk(loop.iter) if isinstance(n, ast.comprehension) for t in n.ifs]
    wanted = [b for t, b, _ in tests if not set(strings(t)).isdisjoint(LOST) and not [*_dropped(t)]]
    if any(_takes(_inside(body), over) for body in wanted):
        return False  # they are taken in another branch: of another network, under other names
    for test, body, otherwise in (*tests, *((t, loop.body, []) for t in chosen)):
        inside = _inside(body)
        kept = set(_dropped(test))
        named = not (set(strings(test)) - kept).isdisjoint(LOST)
        if named and any(isinstance(n, ast.Delete) or calls_by_name(n, "pop") for n in inside):
            return True
        if named and any(isinstance(n, ast.Continue) for n in inside) and _takes(everything, over):
            return True
        if not kept.isdisjoint(LOST) and not otherwise and _takes(inside, over):
            return True
    return False


def _inside(body: list[ast.stmt]) -> list[ast.AST]:
    return [n for statement in body for n in ast.walk(statement)]


def _takes(nodes: list[ast.AST], over: set[str]) -> bool:
    """Whether entries are put into another dict than the one that a loop is over, or copied into a model's own."""
    stores = [n.value for n in nodes if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)]
    return any(spelled(s) not in over for s in stores) or any(calls_by_name(n, "copy_") for n in nodes)


def _parameters_of(value: Any, depth: int = 0) -> Iterator[Obj]:
    """The models of which a value holds all parameters and nothing else."""
    for obj in objects_in(value) if depth < 3 else ():
        if obj.kind == "iteration" and obj.name in ("parameters", "named_parameters"):
            yield canonical(obj.info[0])
        node = obj.node
        if obj.kind == "dict" and isinstance(node, ast.Dict | ast.Call) and None not in getattr(node, "keys", ()):
            for source in obj.sources:
                yield from _parameters_of(source, depth + 1)
        if isinstance(node, ast.DictComp | ast.ListComp) and not node.generators[0].ifs:
            over = node.generators[0].iter
            forms = (o for s in obj.sources for o in options(s) if isinstance(o, Form))
            atoms = [a for f in forms for a in f.terms if "parameters" in method_of(over)]
            yield from (a.owner for a in atoms if a.kind == "parameter" and isinstance(a.owner, Obj))


def _dropped(test: ast.AST) -> Iterator[Any]:
    """The strings that a key must not contain."""
    for n in ast.walk(test):
        if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.NotIn) and isinstance(n.left, ast.Constant):
            yield n.left.value
        if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not):
            yield from strings(n.operand)


def _loaded(facts: Facts, state: Obj | None) -> bool:
    loads = (e.data for e in facts.of("load") if isinstance(e.data["strict"], Const))
    return any(d["strict"].value is False and state in objects_in(d["state"]) for d in loads)


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
        run = options(event.data["what"])
        levels = [facts.has(o) or 0 for o in run if isinstance(o, Obj)]
        level = max([*levels, *(_called_inside(facts, o) for o in run if isinstance(o, Function))], default=0)
        if level in (YES, LIKELY):
            yield said(
                event,
                "activation checkpointing runs the forward again in backward: the running statistics move twice a step",
                "batchnorm.convert(model), whose layers know a recomputed forward",
                sure=level == YES and not event.data["conditional"],
            )


def _called_inside(facts: Facts, function: Function) -> int:
    """Whether a function runs batch norm layers: those that its body calls."""
    return max((facts.has(e.obj) or 0 for e in facts.of("forward") if e.function is function.info), default=0)
