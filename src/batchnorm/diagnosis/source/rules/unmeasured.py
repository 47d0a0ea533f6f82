"""BN440: eval mode with statistics that were never measured."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.contents import YES
from batchnorm.diagnosis.source.facts import Facts, called, file_of, said
from batchnorm.diagnosis.source.syntax import spelled


def reset_and_evaluated(facts: Facts) -> Iterator[Said]:
    """BN440: reset_running_stats(), and then a forward in eval mode."""
    for event in facts.of("unmeasured"):
        by = event.data["by"]
        if facts.uses(event.function, "track_running_stats") or event.obj is None or not facts.likely(event.obj):
            continue
        yield said(
            event,
            f"{spelled(event.node)} sets mean 0 and variance 1, and {called(by)} in line {by.line} of {file_of(by)} "
            "evaluates with these: no forward in train mode comes between",
            "batchnorm.recalibrate(model, loader) after it",
            sure=facts.has(event.obj) == YES and not event.data["conditional"],
        )
