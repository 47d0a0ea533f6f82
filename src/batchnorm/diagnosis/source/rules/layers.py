"""BN411, BN415: layers switched by an attribute, or told by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.syntax import name_of, reads
from batchnorm.diagnosis.source.values import Const, Obj


def flipped_tracking(facts: Facts) -> Iterator[Said]:
    """BN411: track_running_stats = False on a layer that keeps its buffers."""
    flips = [e for e in facts.of("attribute") if e.data["name"] == "track_running_stats"]
    off = [e for e in flips if isinstance(e.data["value"], Const) and e.data["value"].value is False]
    for event in off:
        if event.obj is None or event.obj.kind == "self":
            continue
        every = reads(event.function.node, "modules", "named_modules", "children")
        if not every and event.obj.kind not in ("batch norm", "layer", "parameter"):
            continue
        assigned = (n for n in ast.walk(event.function.node) if isinstance(n, ast.Assign))
        nones = [t for n in assigned if ast.unparse(n.value) == "None" for t in n.targets]
        without = any(name_of(t) in ("running_mean", "running_var") for t in nones)
        restored = any(e not in off and e.function.module is event.function.module for e in flips)
        if without or restored:
            continue
        yield said(
            event,
            "track_running_stats = False on a layer that has buffers: train mode then uses the batch and moves "
            "nothing, eval mode still uses the old buffers",
            "batchnorm.pause(model) for a while, batchnorm.freeze(model) for good",
            sure=event.obj.kind in ("batch norm", "layer"),
        )


WORDS = ("bn", ".bn", "bn.", "_bn", ".bn.", "bn1", "batchnorm", "batch_norm", "BatchNorm", "norm")


def by_name(facts: Facts) -> Iterator[Said]:
    """BN415: 'bn' in name, of a model that has batch norm layers with other names."""
    for event in facts.of("name"):
        word, of = event.data["word"], event.data["of"]
        line = event.function.module.text.splitlines()[event.line - 1]
        if word not in WORDS or not isinstance(of, Obj) or "isinstance(" in line or "type(" in line:
            continue
        owner = of.info[0] if of.kind == "iteration" else of.info if of.kind == "layer" else None
        names = facts.contents.layer_names(owner)
        missed = sorted(n for n in names or () if word.strip("._") not in n)
        if names and missed:
            yield said(
                event,
                f"batch norm layers are told by {word!r} in their names, which misses "
                f"{', '.join(repr(m) for m in missed[:3])}",
                "isinstance(module, torch.nn.modules.batchnorm._BatchNorm) over model.modules()",
                sure=False,
            )
