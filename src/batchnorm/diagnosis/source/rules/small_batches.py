"""BN426: training on batches of one or a few samples."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from batchnorm.diagnosis.source.conditions import decided, exclusive
from batchnorm.diagnosis.source.facts import YES, Facts, Said, called, file_of
from batchnorm.diagnosis.source.rules.forwards import training_forwards
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Event, Test
from batchnorm.diagnosis.source.values import Const, Obj, options

SMALL = 4  # samples of a batch whose statistics are noisy
LOADER = ("torch.utils.data.DataLoader", "torch.utils.data.dataloader.DataLoader")
FIX = "nn.GroupNorm in place of batch norm, batchnorm.freeze(model) for a pretrained model, or a larger batch_size"


def small_batches(facts: Facts) -> Iterator[Said]:
    """BN426: a DataLoader with batch_size=1, or up to 4, whose batches go through batch norm in a training step."""
    loaders = {id(e.node): e for e in facts.of("outside") if e.data["name"] in LOADER}
    for event, c, _ in training_forwards(facts) if loaders else ():
        if (c.layers is not None and c.layers.value != TRAIN) or facts.has(c.obj) != YES:
            continue
        given = [(*found, _sizes(facts, *found)) for found in _loaders(facts, event, loaders)]
        for loader, call, through, sizes in given:
            if not sizes or max(sizes) > SMALL:
                continue
            larger = [(o, t) for o, _, t, s in given if not s or max(s) > max(sizes)]
            if larger and c.mode.value == SWITCHED:
                continue  # the larger ones may be those of training
            if any(_alternatives((loader, through), other) for other in larger):
                continue
            largest, size = int(max(sizes)), _given(loader)
            one = largest == 1
            where = f"(line {event.line} of {file_of(event)})"
            option = next((o for v in _size(loader, through) for o in map(facts.option, facts.aliases(v)) if o), None)
            by = f"--{option.name} of the loader in line {loader.line} is {largest} by default: " if option else ""
            yield Said(
                loader.function.module if option is None else option.module,
                call if option is None else option.node,
                f"{by}{called(event)} is trained on batches of {largest} {where}: batch norm "
                + (
                    "normalises each sample with its own mean and variance, and eval mode with the running ones: "
                    "another function"
                    if one
                    else f"normalises with the statistics of {largest} samples, and the running statistics are as noisy"
                ),
                FIX,
                sure=one
                and option is None
                and not (isinstance(size, Obj) and size.kind == "parameter")  # the callers may choose by the mode
                and c.mode.value == TRAIN
                and facts.always_has(c.obj)
                and facts.evaluated(c.obj),
            )


def _loaders(
    facts: Facts, event: Event, loaders: dict[int, Event]
) -> Iterator[tuple[Event, ast.Call, tuple[Obj, ...]]]:
    """The loaders whose batches a forward is given, whole or an element of them, and the calls that returned them."""
    for value in event.data["inputs"]:
        for origin, path, through in facts.origins(value):
            call = origin.node
            if (
                isinstance(call, ast.Call)
                and id(call) in loaders
                and path[:1] == ("[]",)
                and (len(path) <= 2 or path[2] == "[]" or _nested(value))
            ):
                yield loaders[id(call)], call, through


def _nested(value: Any) -> bool:
    """Whether an element of a batch is a list of tensors: others than the first are taken out of it too."""
    parents = (o.parent for o in options(value) if isinstance(o, Obj) and o.kind == "attribute")
    return any(p is not None and len(p.attrs.keys() - {"[0]", "[]"}) > 0 for p in parents)


def _alternatives(one: tuple[Event, tuple[Obj, ...]], other: tuple[Event, tuple[Obj, ...]]) -> bool:
    """Whether one call, or one run of a script, makes either of two loaders, and nothing says that it is the first."""
    (a, through), (b, beside) = one, other
    if a.function is not b.function or not exclusive(_tests(a), _tests(b)):
        return False
    made, also = (
        next((o for o in t[::-1] if o.kind == "result" and o.info is a.function), None) for t in (through, beside)
    )
    if made is None or also is None:
        return made is also
    return made.node is also.node and _chosen(a, made) is not True


def _tests(loader: Event) -> tuple[Test, ...]:
    return (*loader.data["tests"], *loader.data["returned"])


def _chosen(loader: Event, made: Obj) -> bool | None:
    """Whether a call's literal arguments say that it makes a loader, which is under tests."""
    given = loader.function.literals | {n: v.value for n, v in made.given.items() if isinstance(v, Const)}
    found = [decided(t, given) for t in _tests(loader)]
    return False if False in found else None if None in found else True


def _given(loader: Event) -> Any:
    """The batch size as the loader is given it."""
    keywords, args = loader.data["keywords"], loader.data["args"]
    return keywords.get("batch_size", args[1] if len(args) > 1 else Const(1))


def _size(loader: Event, through: tuple[Obj, ...]) -> tuple[Any, ...]:
    """What a loader's batch size may be, in these calls of the functions around it."""
    value = _given(loader)
    for call in through:
        if isinstance(value, Obj) and value.kind == "parameter" and value.info is call.info:
            value = call.given.get(value.name) or value
    return options(value)


def _sizes(facts: Facts, loader: Event, node: ast.Call, through: tuple[Obj, ...]) -> list[float]:
    """The literal batch sizes that a loader may have; none where one is unknown or the batches are put together."""
    keywords = loader.data["keywords"]
    if not keywords.keys().isdisjoint(("batch_sampler", "collate_fn")) or any(
        isinstance(a, ast.Starred) for a in node.args
    ):
        return []
    if any(k.arg is None for k in node.keywords) and "batch_size" not in keywords:
        return []
    each = [(option, facts.numbers(option)) for option in _size(loader, through)]
    named = {o.name for o, numbers in each if numbers and isinstance(o, Obj)}
    # Options that are read back from a checkpoint are those of the command line of another day.
    each = [(o, numbers) for o, numbers in each if numbers or not (isinstance(o, Obj) and o.name in named)]
    return [n for _, numbers in each for n in numbers] if all(numbers for _, numbers in each) else []
