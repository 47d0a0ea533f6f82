"""BN442: parameters put into a model, or a layer, without the statistics that belong to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.conditions import exclusive
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.rules.averages import BUFFERS
from batchnorm.diagnosis.source.syntax import spelled, words
from batchnorm.diagnosis.source.trace import Event
from batchnorm.diagnosis.source.values import Obj

FIX = "torch.save(model.state_dict(), path) and model.load_state_dict(torch.load(path))"


def without_statistics(facts: Facts) -> Iterator[Said]:
    """BN442: parameters of a file copied into a model that evaluates, and layers copied without statistics."""
    yield from _copied_layers(facts)
    for event in facts.of("write"):
        owner = event.data["atom"].owner
        if event.data["atom"].kind != "parameter" or not isinstance(owner, Obj) or not facts.likely(owner):
            continue
        if facts.uses(event.function, *BUFFERS) or not facts.uses(event.function, "load") or not _replaces(event):
            continue
        if not _has_others(facts, event, owner):
            used = "which is put in eval" if facts.evaluated(owner) else "whose eval mode uses them"
            yield said(
                event,
                f"parameters alone are loaded into {owner.path}, {used}: its running statistics are not those of "
                "these weights",
                FIX,
                sure=facts.has(owner) == YES and facts.evaluated(owner),
            )


def _copied_layers(facts: Facts) -> Iterator[Said]:
    """`if isinstance(a, BatchNorm2d): b.weight.data = a.weight.data[keep]`, and nothing of the statistics."""
    for module in facts.modules:
        for test in module.nodes if "BatchNorm" in module.text and "isinstance" in module.text else ():
            if not isinstance(test, ast.If) or "BatchNorm" not in spelled(test.test, 200):
                continue
            copies = [n for s in test.body for n in ast.walk(s) if isinstance(n, ast.Assign) and _copies(n)]
            text = " ".join(ast.unparse(s) for s in test.body)
            if {_names(n)[1] for n in copies} >= {"weight", "bias"} and "running_" not in text and "state" not in text:
                yield Said(
                    module,
                    copies[0],
                    f"weight and bias of a batch norm layer are copied to {_names(copies[0])[0]}, without "
                    "running_mean and running_var",
                    "copy running_mean and running_var too, or batchnorm.recalibrate(model, loader)",
                    sure=False,
                )


def _names(node: ast.Assign) -> list[str]:
    """`b` and `weight` of `b.weight.data = ...`."""
    return spelled(node.targets[0], 200).removesuffix(".data").rsplit(".", 1)


def _copies(node: ast.Assign) -> bool:
    """Whether an assignment copies the same parameter of another layer."""
    to = _names(node)
    if len(to) != 2 or to[1] not in ("weight", "bias"):
        return False
    read = (n for n in ast.walk(node.value) if isinstance(n, ast.Attribute) and n.attr == to[1])
    return any(spelled(n.value, 200) != to[0] for n in read)


def _replaces(event: Event) -> bool:
    """Whether a parameter becomes something that is no model's."""
    single = event.data.get("in_place") in (None, "copy_") and words(event.node).isdisjoint(("mean", "sum"))
    atoms = [a.kind for now, _, _ in event.data["values"] for a in now.terms]
    loops = any(isinstance(n, ast.For) for n in event.data["loops"])
    return single and loops and bool(atoms) and {"other", "element", "shadow", "entry"}.issuperset(atoms)


def _has_others(facts: Facts, event: Event, owner: Obj) -> bool:
    """Whether the model is given all of a state too, in a run that comes here."""
    here = (*event.data["tests"], *event.data["returned"])
    loads = (e for e in facts.of("load") if facts.same(e.obj, owner))
    return facts.pretrained(owner) or any(not exclusive(here, e.data["tests"]) for e in loads)
