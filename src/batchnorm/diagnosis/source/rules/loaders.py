"""The DataLoaders whose batches a forward is given, and how large these are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

from batchnorm.diagnosis.source.facts import Facts
from batchnorm.diagnosis.source.trace import Event
from batchnorm.diagnosis.source.values import Const, Obj, options

LOADER = ("torch.utils.data.DataLoader", "torch.utils.data.dataloader.DataLoader")


class Loader(NamedTuple):
    """A loader's construction, and the calls that returned it."""

    event: Event
    node: ast.Call
    through: tuple[Obj, ...]

    @property
    def given(self) -> Any:
        """The batch size as the loader is given it."""
        keywords, args = self.event.data["keywords"], self.event.data["args"]
        return keywords.get("batch_size", args[1] if len(args) > 1 else Const(1))

    @property
    def size(self) -> tuple[Any, ...]:
        """What the batch size may be, in these calls of the functions around it."""
        value = self.given
        for call in self.through:
            if isinstance(value, Obj) and value.kind == "parameter" and value.info is call.info:
                value = call.given.get(value.name) or value
        return options(value)

    def sizes(self, facts: Facts) -> list[float]:
        """The literal batch sizes that it may have; none where one is unknown or the batches are put together."""
        keywords = self.event.data["keywords"]
        if not keywords.keys().isdisjoint(("batch_sampler", "collate_fn")) or any(
            isinstance(a, ast.Starred) for a in self.node.args
        ):
            return []
        if any(k.arg is None for k in self.node.keywords) and "batch_size" not in keywords:
            return []
        read = next((k.value for k in self.node.keywords if k.arg == "batch_size"), None)
        if isinstance(self.given, Const) and isinstance(read, ast.Attribute) and read.attr in facts.options_by_name:
            return []  # a script has given an option another value
        each = [(option, facts.numbers(option)) for option in self.size]
        named = {o.name for o, numbers in each if numbers and isinstance(o, Obj)}
        # Options that are read back from a checkpoint are those of the command line of another day.
        each = [(o, numbers) for o, numbers in each if numbers or not (isinstance(o, Obj) and o.name in named)]
        return [n for _, numbers in each for n in numbers] if all(numbers for _, numbers in each) else []


def loaders_of(facts: Facts, event: Event) -> Iterator[Loader]:
    """The loaders whose batches a forward is given, whole or an element of them."""
    known = facts.once("loaders", lambda: {id(e.node): e for e in facts.of("outside") if e.data["name"] in LOADER})
    for value in event.data["inputs"] if known else ():
        for origin, path, through in facts.origins(value):
            call, element = origin.node, len(path) <= 2 or path[2] == "[]" or _nested(value)
            if isinstance(call, ast.Call) and id(call) in known and path[:1] == ("[]",) and element:
                yield Loader(known[id(call)], call, through)


def _nested(value: Any) -> bool:
    """Whether an element of a batch is a list of tensors: others than the first are taken out of it too."""
    parents = (o.parent for o in options(value) if isinstance(o, Obj) and o.kind == "attribute")
    return any(p is not None and len(p.attrs.keys() - {"[0]", "[]"}) > 0 for p in parents)
