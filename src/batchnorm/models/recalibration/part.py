"""How much of the data a run reads where the fixed point of all of them would cost too many forwards."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from batchnorm.models.batches import counted
from batchnorm.models.recalibration.memory import Pilot
from batchnorm.models.recalibration.source import in_stored_order

# Of the data, unless exactness is asked for.
MOST_FORWARDS = 3
# A part takes this much memory, and a quarter of what is free where so much is needed for _WANTED batches.
_SHARE = 512 << 20
_WANTED = 32
# Fewer have no error bar worth the name; layer by layer there may be more.
_FEWEST = 8
MOST_THREADS = 1024


@dataclass(frozen=True)
class Part:
    """How many batches to read of how many (None: not known), and whether all of them meet at each layer."""

    batches: int
    total: int | None
    meet: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.total is not None and self.batches >= self.total


def part_of_data(pilot: Pilot, total: int | None, batch_bytes: int, free: int, memory: int | None) -> Part:
    """As many batches as fit in a share of memory; all, where all fit or cost no more forwards than allowed.

    batch_bytes is what one batch takes itself, where it is not in memory anyway.
    """
    one = max(1, pilot.bytes + batch_bytes)
    share = min(free // 4, max(_SHARE, _WANTED * one)) if memory is None else memory
    fits = min(MOST_THREADS, share // one)
    if total is None:
        return Part(max(1, fits), None, fits > 1)
    if total <= fits:
        return Part(total, total, True)
    # Layer by layer each batch takes a forward per layer, one that finds no more, and one that measures; the
    # first batch has been run twice before.
    by_layers = min(total, (MOST_FORWARDS * total - 2) // (pilot.layers + 2))
    if by_layers == total or (fits < min(_FEWEST, total) and by_layers > fits):
        return Part(max(1, by_layers), total, False)
    return Part(max(1, fits), total, True)


def spread(loader: Any, count: int) -> tuple[Iterable[Any], list[int]] | None:
    """So many batches, one drawn from each of as many stretches of a loader that can be indexed, and their numbers.

    None where the loader cannot be indexed, or shuffles: the first batches are as good then.
    """
    if isinstance(loader, (list, tuple)):
        numbers = _one_of_each(len(loader), count)
        return [loader[number] for number in numbers], numbers
    if type(loader) is not DataLoader or not in_stored_order(loader) or loader.batch_sampler is None:
        return None
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not (isinstance(dataset, Dataset) or hasattr(dataset, "__getitem__")):
        return None
    every: list[Any] = list(loader.batch_sampler)
    numbers = _one_of_each(len(every), count)
    names = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "prefetch_factor")
    options = {name: getattr(loader, name) for name in names}
    part = DataLoader(
        dataset,
        batch_sampler=[every[number] for number in numbers],
        multiprocessing_context=loader.multiprocessing_context,
        **options,
    )
    return part, numbers


def _one_of_each(total: int, count: int) -> list[int]:
    """A number drawn from each of count stretches: whatever is periodic in the data is not met in step."""
    draw = random.Random(total)
    edges = [total * k // count for k in range(count + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(edges)]


def sentence(
    part: Part,
    pilot: Pilot,
    error: tuple[float, float] | None,
    seconds: float,
    spread_out: bool,
    budget: int,
) -> str:
    """What will be read, what that leaves, and what exactness would cost with this many bytes.

    error is the range that the standard error will be in; without one the pilot's single batch tells its order.
    """
    where = "spread over the loader" if spread_out else "the first"
    left = "not known beforehand"
    if error is not None:
        left = f"{error[0]:.2g} to {error[1]:.2g} standard deviations in the worst layer"
    elif pilot.error is not None and math.isfinite(pilot.error):
        size = pilot.error / (part.batches * pilot.samples) ** 0.5
        left = f"of the order of {size:.1g} standard deviations, judged by one batch"
    if part.total is None:
        read = counted(part.batches, "batch", "batches")
        return (
            f"Reading {read} ({where}); standard error {left}. "
            "The loader does not say how many it has; exact=True takes all."
        )
    meet = part.total <= min(MOST_THREADS, budget // max(1, pilot.bytes))
    # A pass ends where it has met its layer: half of a forward on average.
    cost = duration(part.total * seconds * (1 if meet else pilot.layers / 2 + 2))
    passes = counted(1 if meet else pilot.layers + 2, "pass", "passes")
    return (
        f"Reading {part.batches:,} of {part.total:,} batches ({where}); standard error {left}. "
        f"All {part.total:,} batches: {passes}, about {cost}; exact=True."
    )


def duration(seconds: float) -> str:
    """In a unit that leaves a number between 1 and 100."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
