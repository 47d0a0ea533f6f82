"""Batch after batch, each layer normalising with the batch (PreciseBN): one pass, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.models.recalibration.batch_moments import Part, part_of, sample_summaries
from batchnorm.models.recalibration.exchangeable import Alike
from batchnorm.models.recalibration.forwards import Caller, Enough, Order, Visits
from batchnorm.models.recalibration.targets import Target
from batchnorm.models.recalibration.totals import Totals

_AT_ONCE = 16


@dataclass(frozen=True)
class Layout:
    """Where each layer's channels lie in one long vector."""

    where: dict[str, slice]
    owner: Tensor

    @staticmethod
    def of(targets: dict[str, Target]) -> Layout:
        """In the order of the targets."""
        where, start = {}, 0
        for name, target in targets.items():
            size = target.stat("running_mean").numel()
            where[name] = slice(start, start + size)
            start += size
        sizes = torch.tensor([w.stop - w.start for w in where.values()])
        return Layout(where, torch.arange(len(where)).repeat_interleave(sizes))


@dataclass
class Skipped:
    """A batch left out, and the layer that first saw it was not finite."""

    number: int
    layer: str


def none_finite(layer: str, batches: int) -> BatchNormError:
    """What is raised where no batch is left."""
    return BatchNormError(
        "loader must give finite activations in at least one batch; NaN or infinity reached layer "
        f"{layer!r} in all {batches}"
    )


@dataclass
class _Batch:
    """The visitor of one batch: layers are given the batch's own statistics, and these are kept."""

    last: str | None
    summaries: Tensor | None = None
    names: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        if x.numel() == 0:
            return
        part = part_of(x, weight)
        if x.numel() == x.shape[1] or (weight is not None and part.count <= 1):
            raise BatchNormError(
                f"loader must give more than 1 value per channel with upstream='batch'; layer {target.name!r} got a "
                f"batch of shape {tuple(x.shape)}: use larger batches, or upstream='population'"
            )
        if not self.names:
            self.summaries = sample_summaries(x) if weight is None else None
        self.names.append(target.name)
        seen = self.parts.get(target.name)
        self.parts[target.name] = part if seen is None else seen.merge(part)
        target.write(part.mean, part.var)
        if target.name == self.last:
            raise Enough


@dataclass
class Stream:
    """A streaming run: what it has seen, to be continued with `add` batch by batch.

    Batches are pooled several at a time, since the arithmetic is on short vectors: `settle` pools
    those that wait.
    """

    layout: Layout
    totals: Totals
    waiting: list[Tensor] = field(default_factory=list)
    order: Order = field(default_factory=Order)
    alike: Alike = field(default_factory=Alike)
    samples: int = 0
    read: int = 0
    code: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    reached: dict[str, None] = field(default_factory=dict)

    @staticmethod
    def over(targets: dict[str, Target]) -> Stream:
        """Nothing seen yet."""
        layout = Layout.of(targets)
        return Stream(layout, Totals.empty(layout.owner))

    @property
    def batches(self) -> int:
        """Those that counted."""
        return self.read - len(self.skipped)

    def add(self, caller: Caller, visits: Visits, batch: Any, size: int) -> None:
        """Run one batch and pool it, unless it is not finite."""
        visitor = _Batch(self.order.last)
        complete = True
        with visits.by(visitor):
            try:
                caller(batch, self.read)
            except Enough:
                complete = False
        row = self._flat(visitor.parts)
        number, self.read = self.read, self.read + 1
        if not bool(torch.isfinite(row).all()):
            self.skipped.append(Skipped(number, _first_broken(visitor)))
            return
        self.order.note(tuple(visitor.names), complete)
        self.reached.update(dict.fromkeys(visitor.names))
        self.samples += size
        self.waiting.append(row)
        if len(self.waiting) == _AT_ONCE:
            self.settle()
        if visitor.summaries is not None:
            self.alike.add(visitor.summaries.cpu())

    def settle(self) -> Totals:
        """Pool the batches that wait."""
        if self.waiting:
            self.totals.add(*torch.stack(self.waiting, 1))
            self.waiting = []
        return self.totals

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "totals": self.totals.state(),
            "waiting": self.waiting,
            "order": list(map(list, self.order.seen)),
            "alike": dict(self.alike.__dict__),
            "counts": [self.samples, self.read, self.code],
            "skipped": [[s.number, s.layer] for s in self.skipped],
            "reached": list(self.reached),
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint, if it holds anything."""
        if not saved:
            return
        state = saved["stream"]
        self.totals = Totals.from_state(state["totals"])
        self.waiting = list(state["waiting"])
        self.order.seen = [tuple(names) for names in state["order"]]
        self.alike = Alike(**state["alike"])
        self.samples, self.read, self.code = state["counts"]
        self.skipped = [Skipped(number, layer) for number, layer in state["skipped"]]
        self.reached = dict.fromkeys(state["reached"])

    def _flat(self, parts: dict[str, Part]) -> Tensor:
        """Counts, means and m2 of one batch over all layers, `(3, channels)`."""
        row = torch.zeros(3, len(self.layout.owner), dtype=torch.float64)
        if len(parts) == len(self.layout.where):
            ordered = [parts[name] for name in self.layout.where]
            row[1], row[2] = torch.cat([p.mean for p in ordered]), torch.cat([p.m2 for p in ordered])
        for name, part in parts.items():
            where = self.layout.where[name]
            row[0, where] = part.count
            if len(parts) < len(self.layout.where):
                row[1, where], row[2, where] = part.mean, part.m2
        return row


def _first_broken(visitor: _Batch) -> str:
    for name in visitor.names:
        part = visitor.parts[name]
        if not bool(torch.isfinite(part.mean).all() & torch.isfinite(part.m2).all()):
            return name
    return visitor.names[0]
