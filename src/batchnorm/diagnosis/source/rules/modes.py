"""BN405, BN412, BN418, BN419, BN423: forwards in the wrong mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import LIKELY, YES, Facts, Said, adapts, called, spelled
from batchnorm.diagnosis.source.rules.averages import averaged
from batchnorm.diagnosis.source.trace import EVAL, TRAIN, Context, Event
from batchnorm.diagnosis.source.values import Obj, canonical

NOISE = re.compile(
    r"^(z|zs|noise|noises|latent|latents|fixed_noise|fixed_z|z_\w+|\w*noise\w*|gen_?input|real_[ABab]|real\w*|fixed\w*|sample\w*|lr|hr|imgs_lr)$"
)
MADE_UP = re.compile(
    r"torch\.(rand|randn|ones|zeros|empty|full|randint)|np\.random|dummy|example|fake|^inp?$|test_input"
)
TEACHER = re.compile(
    r"teacher|^t_?(model|net)$|(model|net)_?t$|_tea\b|ref(erence)?_model|frozen|old_model|model_old|prev(ious)?_model|pretrained"
)


def forwards(facts: Facts, managed: bool = False) -> Iterator[tuple[Event, Context, int]]:
    """Forwards of objects that have, or are likely to have, batch norm, and outside of a model's own class.

    With `managed`, those too of models whose own methods set modes.
    """
    for event in facts.of("forward"):
        owner = event.function.owner
        if owner is not None and (
            (owner.is_module and event.function.name in ("forward", "__call__", "_forward_impl")) or adapts(owner)
        ):
            continue
        for context in event.contexts:
            level = max(facts.likely(context.obj), facts.has(event.obj) or 0)
            if level and (managed or not facts.manages(context.obj)):
                yield event, context, level


def evaluates_in_train(facts: Facts) -> Iterator[Said]:
    """BN405: evaluated without gradients, in the train mode that it was made or trained in."""
    seen: set[int] = set()
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or id(event.node) in seen or not (c.no_grad is True or infers(facts, event, c)):
            continue
        here = c.mode.function is event.function and c.mode.node is not None
        if here or facts.trains(event) or measures(facts, event, c) or generates(event):
            continue
        if c.layers is not None or is_average(facts, c.obj) or _teaches(facts, event):
            continue
        if c.mode.node is None and max(facts.has(c.obj) or 0, facts.has(event.obj) or 0) == 0:
            continue
        seen.add(id(event.node))
        always = all(o.mode.value == TRAIN for o in event.contexts)
        since = (
            f" (train() in line {getattr(c.mode.node, 'lineno', 0)} of {_file(c)})"
            if c.mode.node is not None
            else ", as a new model is"
        )
        name = called(event)
        yield Said(
            event.function.module,
            event.node,
            f"{name} is evaluated in train mode{since}: batch norm normalises with the batch and moves the running "
            "statistics",
            f"{name}.eval() before, {name}.train() after",
            sure=level == YES and always,
        )


def infers(facts: Facts, event: Event, c: Context) -> bool:
    """Whether a loaded model runs on data in files that train nothing, in the mode that it was made in."""
    if not c.loaded or c.mode.node is not None or facts.has(c.obj) != YES:
        return False
    if any(facts.steps(f.module) for f in (event.function, c.function)):
        return False
    same = {id(o) for o in facts.aliases(c.obj)}
    loads = [e for e in facts.of("load") if id(e.obj) in same]
    if loads and all(e.data["conditional"] for e in loads):
        return False
    made = [v for v in event.data["inputs"] if isinstance(v, Obj) and v.kind == "external"]
    return not any(MADE_UP.search(v.info[0]) for v in made) and not any(MADE_UP.search(w) for w in _words(event))


def measures(facts: Facts, event: Event, c: Context) -> bool:
    """Whether the forward, its caller or what set its mode is there to measure statistics."""
    return any(facts.measures(f) for f in (event.function, c.function, c.mode.function) if f is not None and f.name)


def is_average(facts: Facts, obj: Obj) -> bool:
    """Whether an object, or what it is a part of, is an average of another."""
    at: Obj | None = obj
    while at is not None:
        if id(at) in averaged(facts):
            return True
        at = canonical(at.parent) if at.kind == "attribute" else None
    return False


def _file(c: Context) -> str:
    return c.mode.function.module.path.rsplit("/", 1)[-1] if c.mode.function is not None else "the program"


def _words(event: Event) -> set[str]:
    """The names in a forward's arguments."""
    node = event.node
    given = (*node.args, *(k.value for k in node.keywords)) if isinstance(node, ast.Call) else ()
    return {n.id for a in given for n in ast.walk(a) if isinstance(n, ast.Name)}


def generates(event: Event) -> bool:
    """A generator that is sampled: many are sampled with the batch's statistics on purpose."""
    name = called(event).split(".")[-1].lower()
    return (
        any(NOISE.match(w) for w in _words(event))
        or name in ("g", "netg", "net_g", "gen", "generator", "decoder")
        or name.startswith(("g_", "gen_", "netg"))
    )


def _teaches(facts: Facts, event: Event) -> bool:
    return bool(TEACHER.search(called(event).lower()))


def moves_without_gradients(facts: Facts) -> Iterator[Said]:
    """BN412: train() and then a forward under no_grad in one function, or a summary of a trained model."""
    seen: set[int] = set()
    for event, c, level in forwards(facts):
        here = c.mode.function is event.function and c.mode.node is not None
        if c.mode.value != TRAIN or c.no_grad is not True or not here or id(event.node) in seen or c.second:
            continue
        if (
            measures(facts, event, c)
            or generates(event)
            or is_average(facts, c.obj)
            or c.layers is not None
            or _restored(facts, event)
        ):
            continue
        seen.add(id(event.node))
        trains = facts.trains(event)
        name = called(event)
        yield Said(
            event.function.module,
            event.node,
            f"{name} runs forward under no_grad in train mode (train() in line {getattr(c.mode.node, 'lineno', 0)}): "
            "it moves the running statistics",
            f"with batchnorm.pause({name}): ..., or {name}.eval()",
            sure=level == YES and not trains,
        )
    for event in facts.of("outside"):
        if event.data["name"].rsplit(".", 1)[0] not in (
            "torchsummary",
            "torchsummaryX",
            "torchsummary.torchsummary",
        ) or not event.data["name"].endswith(".summary"):
            continue
        for c in event.contexts:
            if c.mode.value == TRAIN and facts.has(c.obj) == YES and c.loaded:
                yield Said(
                    event.function.module,
                    event.node,
                    "a summary runs the model forward in train mode on random numbers: it moves the running "
                    "statistics that were loaded",
                    f"{spelled(event.node.args[0])}.eval() before"
                    if isinstance(event.node, ast.Call)
                    else "eval() before",
                )
                break


def _restored(facts: Facts, event: Event) -> bool:
    """The statistics are saved before and put back."""
    return facts.uses(
        event.function,
        "pause",
        "preserve_stats",
        "bypass_bn",
        "disable_running_stats",
        "disable_tracking_bn_stats",
        "_disable_tracking_bn_stats",
        "deepcopy",
    ) or (facts.uses(event.function, "state_dict") and facts.uses(event.function, "load_state_dict"))


def never_back(facts: Facts) -> Iterator[Said]:
    """BN418: trained in train mode in the first round of a loop, and in eval mode from the second on."""
    seen: set[int] = set()
    first: dict[tuple[int, int], set[str]] = {}
    for event, c, _ in forwards(facts):
        if not c.second:
            first.setdefault((id(event.node), id(c.obj)), set()).add(c.mode.value)
    for event, c, level in forwards(facts):
        if (
            c.mode.value != EVAL
            or not c.second
            or c.no_grad is not False
            or id(event.node) in seen
            or c.mode.node is None
        ):
            continue
        if (
            TRAIN not in first.get((id(event.node), id(c.obj)), set())
            or not facts.trains(event)
            or c.layers is not None
        ):
            continue
        seen.add(id(event.node))
        name = called(event)
        where = getattr(c.mode.node, "lineno", 0)
        yield Said(
            event.function.module,
            event.node,
            f"{name} is trained in eval mode from the second round on: eval() in line {where} of {_file(c)} is never "
            "followed by train(), so "
            "batch norm's statistics stop there",
            f"{name}.train() at the start of every epoch",
            sure=level == YES,
        )


def second_network(facts: Facts) -> Iterator[Said]:
    """BN419: a trained network that teaches another one, in train mode."""
    seen: set[int] = set()
    for event, c, level in forwards(facts):
        if c.mode.value != TRAIN or id(event.node) in seen or not facts.trains(event) or c.second:
            continue
        if (
            is_average(facts, c.obj)
            or any(id(o) in facts.trained for o in facts.aliases(c.obj))
            or c.layers is not None
        ):
            continue
        named = _teaches(facts, event)
        if not (
            (c.loaded and (c.no_grad is True or named)) or (named and c.no_grad is True and _only_teaches(facts, c.obj))
        ):
            continue
        if c.mode.node is not None and c.mode.function is event.function:
            continue  # train() was called on it on purpose; BN412 speaks of that
        seen.add(id(event.node))
        name = called(event)
        yield Said(
            event.function.module,
            event.node,
            f"{name} is not trained here, and was never put in eval: it normalises with the batch, and its running "
            "statistics move",
            f"{name}.eval()",
            sure=level == YES and c.loaded,
        )


def _only_teaches(facts: Facts, obj: Obj) -> bool:
    return obj.kind in ("instance", "external", "result")


def on_one_rank(facts: Facts) -> Iterator[Said]:
    """BN423: the DistributedDataParallel wrapper runs forward on one rank alone."""
    seen: set[int] = set()
    for event in facts.of("forward"):
        for c in event.contexts:
            if not c.one_rank or c.no_grad is not True or id(event.node) in seen:
                continue
            if event.data.get("wrapper") == "ddp" or _wrapped(facts, event):
                level = facts.has(c.obj)
                if level in (YES, LIKELY):
                    seen.add(id(event.node))
                    name = called(event)
                    yield Said(
                        event.function.module,
                        event.node,
                        f"{name} is DistributedDataParallel and runs on one rank alone: a forward broadcasts the "
                        "running statistics, for which it "
                        "waits on the other ranks",
                        f"{name}.module(...), or evaluate on every rank",
                        sure=level == YES and c.mode.value == EVAL,
                    )


def _wrapped(facts: Facts, event: Event) -> bool:
    """Whether what flows into the called name is always the wrapper."""
    obj = event.obj
    if obj is None or obj.kind != "parameter" or not obj.sources:
        return False
    return (
        all(isinstance(s, Obj) and s.kind == "wrapper" and s.name == "ddp" for s in obj.sources)
        and canonical(obj) is obj
    )
