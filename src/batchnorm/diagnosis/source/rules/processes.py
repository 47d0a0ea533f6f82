"""BN435: batch norm in each process of its own."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.diagnosis.source.facts import YES, Facts, Said, spelled

SYNCHRONIZED = (
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "convert_syncbn_model",
    "sync_bn",
    "syncbn",
    "sync_batchnorm",
)


DISTRIBUTED = ("DistributedDataParallel", "DDP", "init_process_group", "init_distributed", "Accelerator", "Trainer")


def not_synchronized(facts: Facts) -> Iterator[Said]:
    """BN435: DistributedDataParallel around batch norm that no line of the program synchronizes."""
    wrapped = [e for e in facts.of("ddp") if e.obj is not None and facts.has(e.obj) == YES]
    if wrapped and not any(True for _ in facts.of("sync")) and facts.mentioned.isdisjoint(SYNCHRONIZED):
        for event in wrapped:
            yield Said(
                event.function.module,
                event.node,
                f"{spelled(event.node)} holds batch norm that is not synchronized: each process normalises with its "
                "own samples, and the statistics that are saved are those of rank 0",
                "nn.SyncBatchNorm.convert_sync_batchnorm(model) before it, where a process has few samples",
                sure=False,
            )
    if facts.mentioned.isdisjoint(DISTRIBUTED) and "DataParallel" in facts.mentioned:
        for event in facts.of("sync"):
            yield Said(
                event.function.module,
                event.node,
                f"{spelled(event.node)} needs a process for each device, and DataParallel runs in one: nothing is "
                "synchronized, each device normalises with its own samples",
                "DistributedDataParallel, or a batch norm made for DataParallel",
            )
