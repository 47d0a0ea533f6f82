"""How much memory a batch holds while it waits at its widest layer, and how much there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from batchnorm.models.recalibration.forwards import Caller, Order, Visits
from batchnorm.models.recalibration.targets import Target


class _Live(TorchDispatchMode):
    """Every tensor storage that a forward has made and not let go of."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return out

    def bytes(self) -> int:
        """What is alive now."""
        self._made = {key: held for key, held in self._made.items() if not held[0].expired()}
        return sum(size for _, size in self._made.values())


class _Frontier:
    """Visits each layer and notes the most that was alive at one."""

    def __init__(self, live: _Live) -> None:
        self.live, self.most = live, 0
        self.names: list[str] = []

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        self.most = max(self.most, self.live.bytes())
        self.names.append(target.name)


def frontier(caller: Caller, visits: Visits, batch: Any, order: Order) -> int:
    """The bytes one batch holds at the layer where it holds most; the order of its calls is noted."""
    with _Live() as live:
        visitor = _Frontier(live)
        with visits.by(visitor):
            caller(batch)
    order.note(tuple(visitor.names), True)
    return visitor.most


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
