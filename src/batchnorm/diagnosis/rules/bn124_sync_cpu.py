"""SyncBatchNorm refuses CPU tensors in train mode once a process group is initialised."""

from __future__ import annotations

from torch import nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network

TITLE = "SyncBatchNorm in a process group on a CPU"
SEVERITY = "warning"
FIX = "module.__class__ = torch.nn.BatchNorm2d (1d, 3d) for each such module, which has the same state"


def look(e: Evidence) -> Said:
    """Where it cannot run."""
    for layer in e.layers.values():
        if layer.kind == "SyncBatchNorm" and e.sync_refused:
            yield layer.name, "SyncBatchNorm refuses to train on a CPU once a process group is up"


def broken() -> Example:
    """Converted; found inside a process group."""
    return Example(nn.SyncBatchNorm.convert_sync_batchnorm(network()), batches())
