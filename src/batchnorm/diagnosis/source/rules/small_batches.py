"""BN426: training on batches of one or a few samples."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.conditions import decided, exclusive
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, file_of
from batchnorm.diagnosis.source.rules.forwards import training_forwards
from batchnorm.diagnosis.source.rules.loaders import Loader, loaders_of
from batchnorm.diagnosis.source.rules.modes import EVALUATES
from batchnorm.diagnosis.source.trace import SWITCHED, TRAIN, Event, Test
from batchnorm.diagnosis.source.values import Const, Obj

SMALL = 4  # samples of a batch whose statistics are noisy
FIX = "nn.GroupNorm in place of batch norm, batchnorm.freeze(model) for a pretrained model, or a larger batch_size"


def small_batches(facts: Facts) -> Iterator[Said]:
    """BN426: a DataLoader with batch_size=1, or up to 4, whose batches go through batch norm in a training step."""
    for event, c, _ in training_forwards(facts):
        if (c.layers is not None and c.layers.value != TRAIN) or facts.has(c.obj) != YES:
            continue
        given = [(found, found.sizes(facts)) for found in loaders_of(facts, event)]
        for loader, sizes in given:
            if not sizes or max(sizes) > SMALL or _evaluates(loader.event):
                continue
            larger = [o for o, s in given if not s or max(s) > max(sizes)]
            if larger and c.mode.value == SWITCHED:
                continue  # the larger ones may be those of training
            if any(_alternatives(loader, other) for other in larger):
                continue
            largest, size = int(max(sizes)), loader.given
            one = largest == 1
            where = f"(line {event.line} of {file_of(event)})"
            option = next((o for v in loader.size for o in map(facts.option, facts.aliases(v)) if o), None)
            by = (
                f"--{option.name} of the loader in line {loader.event.line} is {largest} by default: " if option else ""
            )
            yield Said(
                loader.event.function.module if option is None else option.module,
                loader.node if option is None else option.node,
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


def _evaluates(loader: Event) -> bool:
    """Whether a loader is made where nothing is trained, by the name of the function or of the file."""
    return any(EVALUATES.search(name.lower()) for name in (loader.function.name, loader.function.module.file))


def _alternatives(one: Loader, other: Loader) -> bool:
    """Whether one call, or one run of a script, makes either of two loaders, and nothing says that it is the first."""
    a, b = one.event, other.event
    if a.function is not b.function or not exclusive(_tests(a), _tests(b)):
        return False
    made, also = (
        next((o for o in t[::-1] if o.kind == "result" and o.info is a.function), None)
        for t in (one.through, other.through)
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
