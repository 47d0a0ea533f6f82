"""BN436, BN437: batch norm that normalises with the batch in eval mode too, and graphs that keep train mode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, said, spelled
from batchnorm.diagnosis.source.rules.forwards import FORWARDS
from batchnorm.diagnosis.source.trace import TRAIN, Event
from batchnorm.diagnosis.source.values import Const, Form

FUNCTIONS = ("torch.nn.functional.batch_norm", "torch.batch_norm")
TF = re.compile(r"(^|\.)(layers\.batch_normalization|layers\.batch_norm|slim\.batch_norm)$")
TRACES = ("torch.jit.trace", "torch.export.export")
SWITCH = {"training": 5, "is_training": -1}  # what says that it trains, and its place in torch's function


def ignores_eval(facts: Facts) -> Iterator[Said]:
    """BN436: `F.batch_norm(x, self.running_mean, ..., True)` in a forward, or `self.bn.train()` there."""
    for event in facts.of("outside"):
        keywords, args = event.data["keywords"], event.data["args"]
        torch = event.data["name"] in FUNCTIONS
        if (not torch and not TF.search(event.data["name"])) or _asks(event):
            continue
        given = [keywords.get(w, args[at] if torch and 0 <= at < len(args) else None) for w, at in SWITCH.items()]
        if Const(True) not in given:
            continue
        running = keywords.get("running_mean", args[1] if torch and len(args) > 1 else None)
        if torch and not _own(running):
            continue
        yield said(
            event,
            f"{spelled(event.node, 40)} is told that it trains in eval mode too: eval() does nothing, each output "
            "depends on its batch, and evaluation moves the running statistics",
            "training=self.training" if torch else "training=is_training, False at evaluation",
            sure=torch,
        )
    for event in facts.of("mode"):
        owner = event.function.owner
        if event.data["mode"] != TRAIN or owner is None or not owner.is_module or event.function.name not in FORWARDS:
            continue
        part = event.obj
        if part is None or part.parent is not owner.self_obj or not facts.is_layer(part) or _asks(event):
            continue
        yield said(
            event,
            f"{part.path} is put in train mode in every forward: eval() on the model does not reach its batch norm",
            "leave the mode to model.train() and model.eval()",
        )


def _asks(event: Event) -> bool:
    """Whether it is under a condition: on the mode, or on an option."""
    return bool(event.data["tests"]) or bool(event.data["returned"])


def _own(value: object) -> bool:
    """Whether a tensor is the layer's own buffer, not a copy that is made for the call."""
    return isinstance(value, Form) and value.live and all(a.kind == "statistic" for a in value.terms)


def traced_in_train(facts: Facts) -> Iterator[Said]:
    """BN437: `torch.jit.trace(model, x)` in train mode."""
    for event in facts.of("outside"):
        if event.data["name"] not in TRACES or not isinstance(event.node, ast.Call):
            continue
        for c in event.contexts:
            if c.mode.value == TRAIN and c.layers is None and facts.has(c.obj) == YES:
                yield said(
                    event,
                    f"{spelled(event.node, 40)} keeps train mode in the graph: batch norm in it normalises with the "
                    "batch for good, whatever eval() is called later",
                    f"{c.obj.path}.eval() before",
                    sure=c.loaded or c.mode.node is not None,
                )
                break
