"""How much memory a batch holds while it waits at its widest layer, and how much there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from batchnorm.models.batches import tensors
from batchnorm.models.recalibration.forwards import Caller, Order, Visits
from batchnorm.models.recalibration.targets import Target

# What a model computes between its modules (sums, concatenations) is not seen.
_UNSEEN = 1.5


class _Frontier:
    """Visits each layer and notes the most that was alive at one: what modules gave and layers got, not yet let go."""

    def __init__(self) -> None:
        self.most = 0
        self.names: list[str] = []
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module's output: a forward hook."""
        for value in tensors(output):
            storage = value.untyped_storage()
            self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        self.note(target.layer, None, x)
        self._made = {key: held for key, held in self._made.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._made.values()))
        self.names.append(target.name)


def frontier(caller: Caller, visits: Visits, batch: Any, order: Order) -> int:
    """About how many bytes one batch holds at the layer where it holds most; the order of its calls is noted."""
    visitor = _Frontier()
    handles = [module.register_forward_hook(visitor.note) for module in caller.model.modules()]
    try:
        with visits.by(visitor):
            caller(batch)
    finally:
        for handle in handles:
            handle.remove()
    order.note(tuple(visitor.names), True)
    return int(_UNSEEN * visitor.most)


def available(device: torch.device) -> int:
    """Bytes that could be used now: the device's, or the machine's within its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = 4 << 30
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(free, max(0, limit - used))
    except (OSError, ValueError):
        return free
