"""Forwards as the rules look at them: of whom, in which mode, to what end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.contents import LIKELY, NO, YES
from batchnorm.diagnosis.source.definitions import in_module
from batchnorm.diagnosis.source.facts import Facts, adapts, called, file_of
from batchnorm.diagnosis.source.rules.averages import averaged
from batchnorm.diagnosis.source.syntax import nodes_of, variables
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Context, Event
from batchnorm.diagnosis.source.values import Obj, owners

FORWARDS = ("forward", "__call__", "_forward_impl")
NOISE = re.compile(
    r"^(z|zs|fake_?z|noise|noises|latent|latents|fixed_noise|fixed_z|z_\w+|\w*noise\w*|gen_?input|real_[ABab]|real\w*|fixed\w*|samples?_?(z|noise|input)\w*|lr|hr|imgs_lr)$"
)
TAKES_DATA = re.compile(r"encoder|classif|feature|extract|backbone|embed|relation")
MADE_UP = re.compile(
    r"torch\.(rand|randn|ones|zeros|empty|full|randint)|(np|numpy)\.(random|ones|zeros)|dummy|example|fake|^inp?$|test_input"
)
SERVES = re.compile(r"(^|_)(test|predict|infer|inference|generate|sample|synthesi[sz]e|evaluate|reconstruct)(_|s?$)")
PREDICTS = re.compile(r"predict|infer|inference|act|classify|(choose|select|get)_action|embeddings?$")
LOSS = re.compile(r"(^|[._])(loss|criterion)\w*(\[\w+\])?$|(loss|criterion)(_?fn|_?func(tion)?)?$")
FILLS = ("uniform_", "normal_", "random_", "fill_", "zero_", "bernoulli_")
TEACHER = re.compile(
    r"teacher|^t_?(model|net)$|(model|net)_?t$|_tea\b|ref(erence)?_model|frozen|old_model|model_old|prev(ious)?_model|pretrained"
)


def forwards(facts: Facts, managed: bool = False) -> list[tuple[Event, Context, int]]:
    """Forwards of objects that have, or are likely to have, batch norm, and outside of a model's own class.

    With `managed`, those too of models whose own methods set modes.
    """
    return facts.once(f"forwards {managed}", lambda: list(_forwards(facts, managed)))


def _forwards(facts: Facts, managed: bool) -> Iterator[tuple[Event, Context, int]]:
    for event in facts.of("forward"):
        owner = event.function.owner
        given = event.obj is not None and event.obj.kind == "parameter"  # as to an attack, or to a loss
        inside = owner is not None and owner.is_module and event.function.name in FORWARDS and not given
        if owner is not None and (inside or adapts(owner)):
            continue
        for context in event.contexts or facts.as_made(event):
            level = max(facts.likely(context.obj), facts.has(event.obj) or 0)
            level = min(level, LIKELY) if level and _unsure(facts, event, context) else level
            if LOSS.search(called(event).lower()) and not facts.always_has(event.obj):
                continue
            if level and (managed or not facts.manages(context.obj)):
                yield event, context, level


def _unsure(facts: Facts, event: Event, c: Context) -> bool:
    """Whether one of the models that it may be has no batch norm, or a mode as made is not all that is said of it."""
    call = None if c.call is None else c.call.node
    others = (o for e in facts.forwards_at(event) for o in e.contexts if (o.call and o.call.node) is call)
    if facts.contents.least(c.obj) in (NO, LIKELY) or any(facts.has(o.obj) == NO for o in others):
        return True
    return c.mode.value == TRAIN and c.mode.node is None and facts.evaluated(c.obj, called=True)


def training_forwards(facts: Facts, managed: bool = False) -> list[tuple[Event, Context, int]]:
    """Forwards in train mode, with gradients, in a function that makes training steps."""

    def trains(event: Event, context: Context) -> bool:
        return context.mode.value in (TRAIN, SWITCHED) and context.no_grad is not True and facts.trains(event)

    found = lambda: [f for f in forwards(facts, managed) if trains(f[0], f[1])]  # noqa: E731
    return facts.once(f"training forwards {managed}", found)


def for_a_step(event: Event, c: Context) -> bool:
    """Whether a model is made anew in each round of a loop, and its statistics are thrown away with it."""
    loop = event.data["loops"][-1] if event.data["loops"] else None
    return loop is not None and any(n is c.obj.node for n in ast.walk(loop))


def infers(facts: Facts, event: Event, c: Context) -> bool:
    """Whether a loaded model runs on data in files that train nothing, in the mode that it was made in."""
    if not c.loaded or c.mode.node is not None or facts.has(c.obj) != YES:
        return False
    if may_load(facts, c) and not (event.data["loops"] or c.at):
        return False  # a new model, as far as is known, that is tried once
    # A model's method has callers of several kinds.
    trains = facts.trains(event) if in_module(event.function) else facts.steps(event.function.module)
    return not trains and not facts.steps(c.function.module) and not made_up(event)


def serves(facts: Facts, event: Event, c: Context) -> bool:
    """Whether a function is there to use a trained model: by its name, without steps, for outputs as values."""
    name = event.function.name
    predicts = bool(PREDICTS.match(name.lower()))
    if not (predicts or SERVES.search(name.lower())) or not (c.loaded or facts.trains_part(c.obj)):
        return False
    tests = file_of(event).startswith("test_") or "assert" in ast.unparse(event.function.node)
    if name.startswith("test_") and tests:
        return False  # of the program itself
    fate = facts.fate(event)
    leaves = fate.leaves and not (predicts and facts.called_apart(name))
    return not (facts.trains(event) or fate.trains or fate.feeds or leaves)


def may_load(facts: Facts, c: Context) -> bool:
    """Whether weights are loaded under conditions alone."""
    loads = [e for e in facts.of("load") if e.obj in facts.aliases(c.obj)]
    return bool(loads) and all(e.data["conditional"] for e in loads)


def made_up(event: Event) -> bool:
    """Whether a forward runs on numbers that are no data."""
    return any(map(_filled, event.data["inputs"])) or any(MADE_UP.search(w) for w in inputs(event))


def _filled(value: Any) -> bool:
    """Whether a tensor is made of numbers: `torch.rand(...)`, `torch.FloatTensor(...).uniform_()`."""
    if isinstance(value, Obj) and value.kind == "global" and len(value.sources) == 1:
        value = value.sources[0]
    while isinstance(value, Obj) and value.kind == "unknown":
        if value.name in FILLS:
            return True
        value = value.info
    return isinstance(value, Obj) and value.kind == "external" and bool(MADE_UP.search(value.info[0]))


def measures(facts: Facts, event: Event, c: Context) -> bool:
    """Whether the forward, its caller or what set its mode is there to measure statistics."""
    if any(facts.measures(f) for f in (event.function, c.function, c.mode.function) if f is not None and f.name):
        return True
    if made_up(event) or c.mode.node is None:
        return False
    return (c.no_grad is True and _thrown_away(event)) or (c.no_grad is not True and _never_read(event))


def _thrown_away(event: Event) -> bool:
    """Whether a loop over data drops the output, `model(x)` or `_ = model(x)`: the statistics are what it is for."""
    loop = next((n for n in reversed(event.data["loops"]) if isinstance(n, ast.For)), None)
    return loop is not None and _dropped(loop, event, {"_"})


def _never_read(event: Event) -> bool:
    """Whether a forward with gradients has an output that its function does not read, and so is for the statistics."""
    read = {n.id for n in nodes_of(event.function.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    stored = {n.id for n in nodes_of(event.function.node) if isinstance(n, ast.Name)} - read
    return bool(event.function.name) and _dropped(event.function.node, event, stored)


def _dropped(within: ast.AST, event: Event, names: set[str]) -> bool:
    """Whether an output goes nowhere, or into these names."""
    return any(
        isinstance(node, ast.Expr)
        or (isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id in names for t in node.targets))
        for node in ast.walk(within)
        if isinstance(node, ast.Expr | ast.Assign) and node.value is event.node
    )


def is_average(facts: Facts, obj: Obj) -> bool:
    """Whether an object, or what it is a part of, is an average of another."""
    return any(id(at) in averaged(facts) for at in owners(obj))


def inputs(event: Event) -> set[str]:
    """The names in a forward's arguments."""
    return variables(*event.node.args, *(k.value for k in event.node.keywords))


def generates(event: Event) -> bool:
    """A generator that is sampled: many are sampled with the batch's statistics on purpose."""
    name = called(event).split(".")[-1].lower().strip("_")
    return not TAKES_DATA.search(name) and (
        any(NOISE.match(w) for w in inputs(event))
        or name in ("g", "netg", "net_g", "gen", "generator", "decoder")
        or name.startswith(("g_", "gen_", "netg"))
    )


def teaches(event: Event) -> bool:
    """Whether what is called is named as a second network is."""
    return bool(TEACHER.search(called(event).lower()))
