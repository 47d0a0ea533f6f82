"""The data of a diagnosis: read once, given again for every experiment, within a budget that is kept."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from batchnorm.errors import BatchNormError, check
from batchnorm.models.batches import count_samples, tensors
from batchnorm.models.random_state import random_state, restore_random_state
from batchnorm.models.recalibration.memory import available
from batchnorm.models.recalibration.source import ahead, offered

PASSES = 8.0  # forward passes over the data, at most, by default
_SECONDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|seconds?|min|minutes?)\s*$")
_MEMORY = 0.25  # of what is free, for batches of a loader that is not a list


def limits(budget: int | str | None) -> tuple[int | None, float | None]:
    """Samples and seconds that a budget allows.

    Raises:
        BatchNormError: neither a positive number of samples nor a time such as "30 s" or "2 min".
    """
    if isinstance(budget, str):
        found = _SECONDS.match(budget)
        check(found is not None, "budget", 'a number of samples, or a time such as "30 s" or "2 min"', repr(budget))
        seconds = float(found[1]) * (60 if found[2].startswith("m") else 1)  # pyright: ignore[reportOptionalSubscript]
        check(seconds > 0, "budget", "a positive time", repr(budget))
        return None, seconds
    legal = budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1)
    check(legal, "budget", 'a number of samples of 1 or more, or a time such as "30 s"', repr(budget))
    return budget, None


class Data:
    """Batches that every pass gives alike.

    A list is there already. Of any other loader the batches are kept while they fit in a quarter of the free
    memory; beyond that a loader that can be iterated again is, with the random state of the first time, and
    of a generator only what was kept is used.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        samples: int | None = None,
        seconds: float | None = None,
        name: str = "loader",
    ) -> None:
        self.loader, self.most, self.name = loader, samples, name
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.seconds = seconds
        self.offered = offered(loader)
        self.again = not isinstance(loader, Iterator)
        self.samples = self.batches = 0
        self.forwarded = 0
        self.cut = False
        self._kept: list[Any] | None = []
        self._read = False
        self._random = random_state()
        self._generator: torch.Generator | None = getattr(loader, "generator", None)
        self._own = None if self._generator is None else self._generator.get_state()

    @property
    def passes(self) -> float:
        """How many forward passes over the data have been made."""
        return self.forwarded / max(self.samples, 1)

    def room(self, passes: float) -> bool:
        """Whether so many more passes may be made."""
        return self.passes + passes <= PASSES and not self.out_of_time

    @property
    def partial(self) -> bool:
        """Whether the loader has more than was read."""
        return self.cut or (self.offered is not None and self.offered > self.samples)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        if not self._read:
            yield from self._first()
        elif self._kept is not None:
            yield from enumerate(self._kept)
        else:
            restore_random_state(self._random)
            if self._generator is not None and self._own is not None:
                self._generator.set_state(self._own)
            for index, batch in enumerate(ahead(self.loader, name=self.name)):
                if index >= self.batches:
                    return
                yield index, batch

    def _first(self) -> Iterator[tuple[int, Any]]:
        """The first pass decides how much is read."""
        room = int(available(torch.device("cpu")) * _MEMORY)
        listed, used, started = isinstance(self.loader, (list, tuple)), 0, time.monotonic()
        for index, batch in enumerate(ahead(self.loader, name=self.name)):
            if self._full(started):
                self.cut = True
                break
            used += 0 if listed else sum(t.numel() * t.element_size() for t in tensors(batch))
            if used > room:
                if not self.again:
                    self.cut = True
                    break
                self._kept = None
            if self._kept is not None:
                self._kept.append(batch)
            self.samples += count_samples(batch)
            self.batches += 1
            yield index, batch
        if self.batches == 0:
            raise BatchNormError(f"{self.name} must yield at least one batch; it was empty")
        self._read = True

    def _full(self, started: float) -> bool:
        if self.batches == 0:
            return False
        if self.most is not None and self.samples >= self.most:
            return True
        # The other passes take as long as this one each.
        return self.seconds is not None and time.monotonic() - started > self.seconds / PASSES

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds given are spent."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def as_loader(self, chosen: Callable[[int], bool] = lambda index: True) -> Again:
        """The same as a loader, for verbs that take one; or some of its batches."""
        return Again(self, chosen)


class Again:
    """Data as a loader that can be iterated again; what is read so counts as forwarded."""

    def __init__(self, data: Data, chosen: Callable[[int], bool]) -> None:
        self._data, self._chosen = data, chosen

    def __iter__(self) -> Iterator[Any]:
        for index, batch in self._data:
            if not self._chosen(index):
                continue
            self._data.forwarded += count_samples(batch)
            yield batch
