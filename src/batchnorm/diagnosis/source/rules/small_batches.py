"""BN426: training on batches of one or a few samples."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.facts import YES, Facts, Said, called
from batchnorm.diagnosis.source.rules.modes import forwards
from batchnorm.diagnosis.source.trace import EVAL, SWITCHED, TRAIN, Event
from batchnorm.diagnosis.source.values import Const, Obj

SMALL = 4  # samples of a batch whose statistics are noisy
LOADER = ("torch.utils.data.DataLoader", "torch.utils.data.dataloader.DataLoader")
FIX = "nn.GroupNorm in place of batch norm, batchnorm.freeze(model) for a pretrained model, or a larger batch_size"


def small_batches(facts: Facts) -> Iterator[Said]:
    """BN426: a DataLoader with batch_size=1, or up to 4, whose batches go through batch norm in a training step."""
    loaders = {id(e.node): e for e in facts.of("outside") if e.data["name"] in LOADER and isinstance(e.node, ast.Call)}
    seen: set[int] = set()
    for event, c, _ in forwards(facts) if loaders else ():
        if c.mode.value not in (TRAIN, SWITCHED) or c.no_grad is True or not facts.trains(event):
            continue
        if (c.layers is not None and c.layers.value != TRAIN) or facts.has(c.obj) != YES:
            continue
        for loader, through in _loaders(facts, event, loaders):
            sizes = _sizes(facts, loader, through)
            if id(loader.node) in seen or not sizes or max(sizes) > SMALL:
                continue
            seen.add(id(loader.node))
            largest = int(max(sizes))
            name = called(event)
            one = largest == 1
            yield Said(
                loader.function.module,
                loader.node,
                f"{name} is trained on batches of {largest} (line {event.line} of "
                f"{event.function.module.path.rsplit('/', 1)[-1]}): batch norm normalises "
                + (
                    "each sample with its own mean and variance, and eval mode with the running ones: another function"
                    if one
                    else f"with the statistics of {largest} samples, and the running statistics are as noisy"
                ),
                FIX,
                sure=one and c.mode.value == TRAIN and facts.always_has(c.obj) and _evaluated(facts, c.obj),
            )


def _loaders(facts: Facts, event: Event, loaders: dict[int, Event]) -> Iterator[tuple[Event, tuple[Obj, ...]]]:
    """The loaders whose batches a forward is given, whole or an element of them, and the calls that returned them."""
    for value in event.data["inputs"]:
        for origin, path, through in facts.origins(value):
            if id(origin.node) in loaders and path[:1] == ("[]",) and len(path) <= 2:
                yield loaders[id(origin.node)], through


def _sizes(facts: Facts, loader: Event, through: tuple[Obj, ...]) -> list[float]:
    """The literal batch sizes that a loader may have; none where one is unknown or the batches are put together."""
    keywords, args = loader.data["keywords"], loader.data["args"]
    node = loader.node
    assert isinstance(node, ast.Call)
    if any(k.arg is None or k.arg in ("batch_sampler", "collate_fn") for k in node.keywords):
        return []
    if any(isinstance(a, ast.Starred) for a in node.args):
        return []
    value: Any = keywords.get("batch_size", args[1] if len(args) > 1 else Const(1))
    for call in through:
        if isinstance(value, Obj) and value.kind == "parameter" and value.info is call.info:
            value = call.given.get(value.name) or value
    return [] if isinstance(value, Const) and value.value is None else facts.numbers(value)


def _evaluated(facts: Facts, obj: Obj) -> bool:
    """Whether the model is put in eval somewhere."""
    same = {id(o) for o in facts.aliases(obj)}
    return any(e.data["mode"] == EVAL and any(id(o) in same for o in facts.aliases(e.obj)) for e in facts.of("mode"))
