"""One forward of the model on one batch, with the layers to estimate reporting what they receive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from batchnorm.models.batches import call
from batchnorm.models.recalibration.targets import Target
from batchnorm.models.receiving import on_input, received


class Enough(BaseException):
    """Ends a forward whose last layer of interest has been reached; not an Exception, so that no model swallows it."""


class Visitor(Protocol):
    """Who is told what a layer receives, before the layer computes."""

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        """One layer of one forward."""
        ...


@dataclass
class Order:
    """The order in which forwards reach the layers, and the last one once it is sure."""

    seen: list[tuple[str, ...]] = field(default_factory=list)
    steady: bool = True

    def note(self, names: tuple[str, ...], complete: bool) -> None:
        """One forward; those cut short by Enough say nothing new."""
        if complete and len(self.seen) < 2:
            self.seen.append(names)

    @property
    def expected(self) -> tuple[str, ...] | None:
        """What another forward is likely to reach; one that did has agreed with the first."""
        names = self.seen[0] if self.seen and self.steady and all(n == self.seen[0] for n in self.seen) else ()
        return names if names and len(set(names)) == len(names) else None

    @property
    def last(self) -> str | None:
        """The layer after which no other can come: two forwards agreed, and no layer was used twice."""
        expected = self.expected
        return expected[-1] if expected is not None and len(self.seen) > 1 else None


@dataclass(frozen=True)
class Caller:
    """How the model is called with a batch."""

    model: nn.Module
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    device: torch.device | None = None
    channels_last: bool = False
    autocast: torch.dtype | None = None
    # A forward each, whole or cut short.
    calls: list[None] = field(default_factory=list[None])
    # Of the batches in the loader, where a part of them is read.
    numbers: list[int] = field(default_factory=list[int])
    # What the caller calls the batches.
    loader: str = "loader"

    def __call__(self, batch: Any, number: int) -> None:
        """Run to the end, or until a visitor has enough; number says which batch it is of those that are read."""
        self.calls.append(None)
        in_loader = self.numbers[number] if self.numbers else number
        with self._autocast():
            call(self.model, batch, self.forward_fn, self.device, self.channels_last, in_loader, self.loader)

    @property
    def where(self) -> torch.device:
        """The device the forward runs on."""
        first = next((t.device for t in [*self.model.parameters(), *self.model.buffers()]), torch.device("cpu"))
        return first if self.device is None else self.device

    def _autocast(self) -> Any:
        return nullcontext() if self.autocast is None else torch.autocast(self.where.type, self.autocast)


class Visits:
    """Which visitor belongs to which thread; a thread that the model itself starts counts as its starter's."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._only: Visitor | None = None

    @contextmanager
    def by(self, visitor: Visitor, threads: bool = False) -> Iterator[None]:
        """Within the context this visitor is told, in this thread or, without threads, in any."""
        if threads:
            self._local.visitor = visitor
        else:
            self._only = visitor
        try:
            yield
        finally:
            self._only = self._local.visitor = None

    @contextmanager
    def watching(self, targets: dict[str, Target]) -> Iterator[None]:
        """Let the layers report."""
        handles = [on_input(t.layer, self._hook(t)) for t in targets.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, target: Target) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visitor = getattr(self._local, "visitor", None) or self._only
            if visitor is not None:
                x, weight = received(target.layer, args, kwargs)
                visitor.arrive(target, x, weight)

        return hook
