"""BN429: a statement that looks as if it set a mode, and sets none."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.syntax import spelled
from batchnorm.diagnosis.source.values import Const


def sets_no_mode(facts: Facts) -> Iterator[Said]:
    """BN429: `model.eval` without a call, and `model.training = False`, which the layers inside do not see."""
    for event in facts.of("mode not called"):
        if event.obj is not None and facts.has(event.obj) == YES:
            text = spelled(event.node)
            yield said(event, f"{text} without brackets calls nothing: the mode stays what it was", f"{text}()")
    for event in facts.of("attribute"):
        value = event.data["value"]
        if event.data["name"] != "training" or not isinstance(value, Const) or not isinstance(value.value, bool):
            continue
        if event.obj is None or event.obj.kind in ("batch norm", "layer", "self") or facts.has(event.obj) != YES:
            continue
        if facts.is_layer(event.obj):
            continue
        set_too = (e for e in facts.of("mode") if e.function.module is event.function.module)
        if any(facts.same(e.obj, event.obj) for e in set_too):
            continue  # train() or eval() sees to the layers
        name = event.obj.path
        yield said(
            event,
            f"training = {value.value} reaches {name} alone and none of the layers inside: batch norm stays in the "
            "mode that it has",
            f"{name}.train({value.value})",
        )
