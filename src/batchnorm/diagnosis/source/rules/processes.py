"""BN435: batch norm in each process of its own."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.code_words import Said
from batchnorm.diagnosis.source.definitions import FunctionInfo
from batchnorm.diagnosis.source.facts import Facts, said
from batchnorm.diagnosis.source.syntax import spelled

SYNCHRONIZED = (
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "convert_syncbn_model",
    "sync_bn",
    "syncbn",
    "sync_batchnorm",
)


BUFFERS = ("buffers", "named_buffers", "running_mean", "running_var")
DISTRIBUTED = ("DistributedDataParallel", "DDP", "init_process_group", "init_distributed", "Accelerator", "Trainer")


def not_synchronized(facts: Facts) -> Iterator[Said]:
    """BN435: gradients that are averaged over processes by hand, or SyncBatchNorm without processes."""
    yield from _gradients_alone(facts)
    if facts.mentioned.isdisjoint(DISTRIBUTED) and "DataParallel" in facts.mentioned:
        for event in facts.of("sync"):
            yield said(
                event,
                f"{spelled(event.node)} needs a process for each device, and DataParallel runs in one: nothing is "
                "synchronized, each device normalises with its own samples",
                "DistributedDataParallel, or a batch norm made for DataParallel",
            )


def _gradients_alone(facts: Facts) -> Iterator[Said]:
    """Gradients that are averaged over processes by hand, and buffers that are not."""
    if not facts.speaks or not facts.mentioned.isdisjoint((*SYNCHRONIZED, *BUFFERS)):
        return
    if any(True for _ in facts.of("ddp")):
        return
    for event in facts.of("outside"):
        name = event.data["name"]
        if name.endswith("distributed.all_reduce") and facts.uses(event.function, "grad"):
            function = _outermost(event.function)
            yield Said(
                event.function.module,
                function.node if function.name else event.node,
                f"{function.name or 'all_reduce'} shares gradients, not the running statistics: each "
                "process keeps its own, evaluates with them, and those of one are saved",
                "average buffers() over processes before each evaluation, or SyncBatchNorm",
                sure=False,
            )


def _outermost(function: FunctionInfo) -> FunctionInfo:
    """The function of a file's top, or of a class, that a function is in."""
    while function.outer is not None and function.outer.name:
        function = function.outer
    return function
