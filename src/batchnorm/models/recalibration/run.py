"""One run over the data with the model held still: what the caller asked for, what a run holds and finds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchnorm.errors import BatchNormError
from batchnorm.models.batches import numbered
from batchnorm.models.objects import all_tensors
from batchnorm.models.random_state import cuda_devices
from batchnorm.models.recalibration.correlation import student, uncertain_time
from batchnorm.models.recalibration.forwards import Caller, Order, Visits
from batchnorm.models.recalibration.ranks import Ranks
from batchnorm.models.recalibration.result import Upstream
from batchnorm.models.recalibration.resume import Checkpoint
from batchnorm.models.recalibration.source import fingerprint, offered
from batchnorm.models.recalibration.targets import Target, shards
from batchnorm.models.recalibration.totals import FEWEST_BATCHES, Totals, Variance
from batchnorm.models.state import snapshot

END = object()
EMPTY = "loader must yield at least one batch; it was empty"


@dataclass(frozen=True)
class Settings:
    """What the caller asked for."""

    variance: Variance
    upstream: Upstream
    until: float | None
    max_samples: int | None
    memory: int | None
    exact: bool = False
    # Who speaks to the user; no setting of what a checkpoint continues.
    verb: str = field(default="recalibrate", repr=False)


@dataclass
class Outcome:
    """What a run found, before it is written."""

    totals: dict[str, Totals]
    residual: dict[str, float]
    samples: int
    batches: int
    offered: int | None
    skipped: tuple[tuple[int, str], ...]
    sorted: bool
    grouped: bool
    stored_order: bool
    converged: bool = True
    passes: int = 1
    # What was said before a part was read; "" where nothing was left out.
    plan: str = ""
    spread: bool = False
    forwards: float = 1.0
    drawn: float = 0.0


class Run:
    """One call of `recalibrate`, with the model held still; its two kinds say how batches are read."""

    def __init__(
        self,
        caller: Caller,
        loader: Iterable[Any],
        targets: dict[str, Target],
        settings: Settings,
        ranks: Ranks,
        resume: str | Path | None,
        shown: bool,
    ) -> None:
        self.caller, self.targets, self.settings, self.ranks = caller, targets, settings, ranks
        self.before = snapshot(t.layer for t in targets.values())
        identity: dict[str, Any] = {}
        if resume is not None:
            first, loader = peek(loader, empty=not ranks.alone)
            whole = [*caller.model.parameters(), *caller.model.buffers()]
            identity["weights"] = fingerprint(whole, 1 << 40)
            identity["settings"] = repr((settings, list(targets)))
            identity["data"] = fingerprint(all_tensors(first))
        self.loader, self.shown = loader, shown
        self.checkpoint = Checkpoint(ranks.file(resume), identity)
        self.visits, self.devices = Visits(), cuda_devices(caller.model)
        self.order = Order(steady=not shards(caller.model))

    def offered(self, ended: bool, samples: int) -> int | None:
        """The samples that the loaders of all processes hold, where each tells; what was read where it ended."""
        here = offered(self.loader)
        if here is None and ended and self.settings.max_samples is None:
            here = samples
        everywhere = self.ranks.gathered(here)
        return None if None in everywhere else sum(everywhere)


def caution(totals: Totals) -> float:
    """What an error from few batches is multiplied by before it may end a run.

    Student's factor over the normal one, and the square root of how much longer the correlation may last.
    """
    if len(totals.sketches) < FEWEST_BATCHES:
        return math.inf
    return student(len(totals.sketches) - 1) / student(math.inf) * math.sqrt(uncertain_time(totals.sketches))


def peek(loader: Iterable[Any], empty: bool = False) -> tuple[Any, Iterable[Any]]:
    """The first batch, and a loader that still gives it; nothing where there may be none."""
    iterator = numbered(loader)
    first = next(iterator, END)
    if first is END:
        if empty:
            return (), loader
        raise BatchNormError(EMPTY)
    return first, itertools.chain([first], iterator) if isinstance(loader, Iterator) else loader
