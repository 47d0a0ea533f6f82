"""The data of a run: read up to a limit, ahead of time where that helps, kept or read again, identified."""

from __future__ import annotations

import itertools
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from batchnorm.models.batches import count_samples, numbered
from batchnorm.models.objects import all_tensors
from batchnorm.models.random_state import random_state, restore_random_state


def offered(loader: Iterable[Any]) -> int | None:
    """How many samples a loader has, where it says so."""
    if isinstance(loader, DataLoader):
        try:
            if loader.batch_size is None:
                return sum(map(len, loader.batch_sampler)) if isinstance(loader.batch_sampler, list) else None
            return len(loader.sampler)  # pyright: ignore[reportArgumentType]
        except TypeError:
            return None
    return sum(map(count_samples, loader)) if isinstance(loader, (list, tuple)) else None


def batches_offered(loader: Iterable[Any]) -> int | None:
    """How many batches a loader has, where it says so."""
    try:
        return len(loader)  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError):
        return None


def in_stored_order(loader: Iterable[Any]) -> bool:
    """Whether a loader is not known to shuffle: one that does not, what is no DataLoader, a stream."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return True
    batches: Any = loader.batch_sampler
    if loader.batch_size is None and batches is not None:
        # Its sampler says nothing then: torch puts a sequential one there.
        if isinstance(batches, list):
            numbers = list(itertools.chain.from_iterable(batches))
            return numbers == sorted(numbers)
        return isinstance(getattr(batches, "sampler", None), SequentialSampler)
    return isinstance(loader.sampler, SequentialSampler)


def limited(batches: Iterator[Any], max_samples: int | None) -> Iterator[Any]:
    """Whole batches until max_samples are reached; what follows is not asked for."""
    seen = 0
    while max_samples is None or seen < max_samples:
        try:
            batch = next(batches)
        except StopIteration:
            return
        seen += count_samples(batch)
        yield batch


def ahead(loader: Iterable[Any], most: int = 2, name: str = "loader") -> Iterator[Any]:
    """A loader's batches, loaded by a thread while the model computes.

    Only a DataLoader without workers gains from it: one with workers does so by itself, a list is
    there already, and a generator is the caller's own code, which belongs in the caller's thread.
    """
    if not isinstance(loader, DataLoader) or loader.num_workers > 0:
        yield from numbered(loader, name)
        return
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(most)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in numbered(loader, name):
                put(("batch", batch))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


class Held:
    """The batches read so far, for those who need them more than once.

    They are kept in memory up to a budget in bytes. Beyond it they are read again from the loader,
    which must then give the same samples each time it is iterated. Random state is put back before, so that a
    shuffling loader shuffles alike.
    """

    def __init__(self, loader: Iterable[Any], max_samples: int | None, budget: int) -> None:
        self.loader, self.budget = loader, budget
        self.again = not isinstance(loader, Iterator)
        self._max = max_samples
        self._random = random_state()
        self._generator: torch.Generator | None = getattr(loader, "generator", None)
        self._own = None if self._generator is None else self._generator.get_state()
        self._more = limited(ahead(loader), max_samples)
        self._kept: list[Any] | None = []
        self._bytes = 0
        self.sizes: list[int] = []
        self.exhausted = False

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, target: int | None) -> None:
        """Read on until target batches are there, or all."""
        while not self.exhausted and (target is None or len(self) < target):
            try:
                batch = next(self._more)
            except StopIteration:
                self.exhausted = True
                return
            self.sizes.append(count_samples(batch))
            self._bytes += sum(t.numel() * t.element_size() for t in all_tensors(batch))
            if self._kept is not None:
                self._kept.append(batch)
                if self._bytes > self.budget and self.again:
                    self._kept = None

    def keep_first(self, count: int) -> None:
        """Of what was read, the first batches only."""
        self.sizes = self.sizes[:count]
        self._kept = None if self._kept is None else self._kept[:count]

    @property
    def bytes_each(self) -> int:
        """What a batch takes in memory that the loader does not hold already."""
        return 0 if isinstance(self.loader, (list, tuple)) else self._bytes // max(1, len(self))

    def replay(self) -> Iterator[tuple[int, Any]]:
        """Every batch read so far with its number."""
        if self._kept is not None:
            yield from enumerate(self._kept)
        else:
            restore_random_state(self._random)
            if self._generator is not None and self._own is not None:
                self._generator.set_state(self._own)
            yield from itertools.islice(enumerate(limited(ahead(self.loader), self._max)), len(self))

    def close(self) -> None:
        """Stop reading ahead."""
        close: Callable[[], None] | None = getattr(self._more, "close", None)
        if close is not None:
            close()


def fingerprint(values: Iterable[Tensor], most: int = 1 << 16) -> int:
    """A checksum of some tensors, of their first bytes each."""
    code = 0
    for value in values:
        flat = value.detach().reshape(-1)[: max(1, most // value.element_size())].contiguous().cpu()
        code = zlib.crc32(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"", code)
        code = zlib.crc32(str((value.dtype, tuple(value.shape))).encode(), code)
    return code
