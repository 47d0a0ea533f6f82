"""How much memory a batch holds while it waits at its widest layer, and how much there is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from batchnorm.models.batches import count_samples
from batchnorm.models.objects import all_tensors
from batchnorm.models.recalibration.forwards import Caller, Order, Visits
from batchnorm.models.recalibration.targets import Target

# What a model computes between its modules (sums, concatenations) is not seen.
_UNSEEN = 1.5


class _Frontier:
    """Visits each layer and notes the most that was alive at one: what modules gave and layers got, not yet let go."""

    def __init__(self) -> None:
        self.most = 0
        self.names: list[str] = []
        self.errors: dict[str, float] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def note(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module's output: a forward hook."""
        for value in all_tensors(output):
            storage = value.untyped_storage()
            self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        self.note(target.layer, None, x)
        self._made = {key: held for key, held in self._made.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._made.values()))
        self.names.append(target.name)
        if x.dim() > 1 and x.shape[0] > 1 and x.numel():
            self.errors.setdefault(target.name, _error_of_one(x, target.layer.eps))


@dataclass(frozen=True)
class Pilot:
    """What the first batch told: bytes at its widest layer, its samples, layers reached, errors, seconds.

    errors holds for each layer the standard error, in standard deviations, that one sample would leave;
    a mean over n independent samples leaves 1 / sqrt(n) of it. None where the batch has one sample only.
    """

    bytes: int
    samples: int
    layers: int
    error: float | None
    seconds: float


NO_PILOT = Pilot(0, 0, 0, None, 0.0)


def frontier(caller: Caller, visits: Visits, batch: Any, order: Order) -> Pilot:
    """Run one batch and note about how many bytes it holds at the layer where it holds most."""
    visitor = _Frontier()
    handles = [module.register_forward_hook(visitor.note) for module in caller.model.modules()]
    start = time.perf_counter()
    try:
        with visits.by(visitor):
            caller(batch, 0)
    finally:
        for handle in handles:
            handle.remove()
    spent = time.perf_counter() - start
    order.note(tuple(visitor.names), True)
    worst = max(visitor.errors.values(), default=None)
    return Pilot(int(_UNSEEN * visitor.most), count_samples(batch), len(set(visitor.names)), worst, spent)


def _error_of_one(x: Tensor, eps: float) -> float:
    """How far one sample's mean and mean square lie from all samples', as `errors_in_std` counts it."""
    rows = x.flatten(2).double() if x.dim() > 2 else x.double()[..., None]
    mean, var = rows.mean((0, 2)), rows.var((0, 2), correction=0) + eps
    centred = rows - mean[:, None]
    of_mean = centred.mean(2).var(0) / var
    of_var = centred.square().mean(2).var(0) / (2 * var).square()
    return float((of_mean + of_var).mean().sqrt())


def available(device: torch.device) -> int:
    """Bytes that could be used now: the device's, or the machine's within its container and the process's limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min(_machine(), *_groups(), *_limits()))


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30


def _groups() -> Iterator[int]:
    """What each control group that holds this process has left, version 2 and version 1."""
    folders = [Path("/sys/fs/cgroup")]
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                root = Path("/sys/fs/cgroup") / ("memory" if kinds else "")
                inside = root / path.lstrip("/")
                folders += [root, *(p for p in (inside, *inside.parents) if p.is_relative_to(root))]
    except (OSError, ValueError):
        pass
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for folder in dict.fromkeys(folders):
        for limit, used in names:
            try:
                yield int((folder / limit).read_text()) - int((folder / used).read_text())
            except (OSError, ValueError):  # "max" is no limit
                continue


def _limits() -> Iterator[int]:
    """What the limits on a process's address space and data leave."""
    try:
        import resource

        used = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft - int(used[name].split()[0]) * 1024
    except (ImportError, OSError, KeyError, ValueError):
        return
