"""The statistics that inference reproduces: every layer stores the moments of what it receives at inference.

A layer's statistics are right once those of all layers before it are. Two ways lead there. If the
activations of all batches fit in memory at one layer, the batches meet at each layer: one forward
in all. Otherwise the data pass once per layer, and each pass ends at the first layer that is not
settled. Both give the same statistics. A layer used several times in a forward has no first use
that is right before its last; then the statistics of such layers are iterated, the others settled
anew each time, and the residual says how far that came.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.models.recalibration.batch_moments import Part, part_of, sample_summaries
from batchnorm.models.recalibration.exchangeable import Alike
from batchnorm.models.recalibration.forwards import Caller, Enough, Order, Visits
from batchnorm.models.recalibration.meeting import Meeting, TooManyThreads
from batchnorm.models.recalibration.ranks import PeerBegins, Ranks, merged
from batchnorm.models.recalibration.resume import Checkpoint
from batchnorm.models.recalibration.source import Held
from batchnorm.models.recalibration.streaming import Layout, Skipped, none_finite
from batchnorm.models.recalibration.targets import Target
from batchnorm.models.recalibration.totals import Totals, Variance

CLOSE = 1e-6
_MOST_ROUNDS = 25


@dataclass
class Settled:
    """Where a solution stands: what each layer received with the statistics now written, and how far they are apart."""

    totals: dict[str, Totals]
    residual: dict[str, float]
    # Whether the layers used several times have settled; the others always have.
    converged: bool
    samples: int
    batches: int
    skipped: list[Skipped]
    alike: list[Alike]
    rounds: int


class _NotFinite(Exception):
    def __init__(self, number: int, layer: str) -> None:
        super().__init__(number, layer)
        self.skipped = Skipped(number, layer)


@dataclass
class FixedPoint:
    """How to settle the statistics of some layers; `solve` does it for the batches read so far."""

    caller: Caller
    visits: Visits
    targets: dict[str, Target]
    variance: Variance
    order: Order
    ranks: Ranks
    checkpoint: Checkpoint
    slots: int = 1
    # The calls of the model after which layers used several times are no longer iterated; None for no limit.
    most_calls: int | None = None
    # Told each time a layer has been settled.
    advance: Callable[[int], None] = lambda steps: None
    names: list[str] = field(default_factory=list)

    def solve(self, held: Held, meet: bool) -> Settled:
        """All layers, with the batches that are not finite left out."""
        # One order for all processes, whoever has seen a forward.
        self.names = self.ranks.union([*dict.fromkeys(n for names in self.order.seen for n in names)])
        self.names += [name for name in self.targets if name not in self.names]
        skipped: list[Skipped] = []
        while True:
            out = {s.number for s in skipped}
            self._check_some_left(len(held), skipped)
            try:
                settled = self._iterate(held, out, meet)
            except TooManyThreads:
                if not self.ranks.alone:
                    raise
                meet = False
                continue
            except _NotFinite as found:
                # What it added to earlier layers is in their statistics: begin again without it, all together.
                skipped.append(found.skipped)
                self.ranks.again()
                continue
            except PeerBegins:
                continue
            settled.skipped = sorted(skipped, key=lambda s: s.number)
            settled.samples = sum(size for number, size in enumerate(held.sizes) if number not in out)
            settled.batches = len(held) - len(out)
            return settled

    def _check_some_left(self, batches: int, skipped: list[Skipped]) -> None:
        told = self.ranks.gathered((batches, len(skipped), skipped[0].layer if skipped else ""))
        if all(read == left_out for read, left_out, _ in told):
            layer = next(name for _, left_out, name in told if left_out)
            raise none_finite(layer, sum(read for read, _, _ in told))

    def _iterate(self, held: Held, out: set[int], meet: bool) -> Settled:
        given: dict[str, tuple[Tensor, Tensor]] = {}
        rounds = 0
        while True:
            rounds += 1
            before = len(self.caller.calls)
            for name, statistics in given.items():
                self.targets[name].write(*statistics)
            totals, reused, alike = (self._meet if meet else self._layer_by_layer)(held, out, set(given))
            reused |= set(given)
            residual = {name: self._residual(name, total) for name, total in totals.items()}
            close = all(residual[name] <= CLOSE + self._rounding(name, totals[name]) for name in reused)
            settled = Settled(totals, residual, close, 0, 0, [], alike, rounds)
            if close or rounds == _MOST_ROUNDS or any(self.ranks.gathered(self._too_many(before))):
                return settled
            given = {name: self._estimate(name, totals[name]) for name in sorted(reused)}

    def _too_many(self, before: int) -> bool:
        """Whether another round like the one that began after `before` calls would exceed the limit."""
        calls = len(self.caller.calls)
        return self.most_calls is not None and 2 * calls - before > self.most_calls

    # All at once ---------------------------------------------------------------------------------------------

    def _meet(self, held: Held, out: set[int], given: set[str]) -> tuple[dict[str, Totals], set[str], list[Alike]]:
        uses: dict[str, list[dict[int, Part]]] = {}
        totals: dict[str, Totals] = {}
        late = set[str]()

        def settle_next(name: str | None, here: Totals | None) -> bool:
            """The first layer that any process waits at, from those that wait there; False where nobody waits."""
            waits = self.ranks.gathered((name, None if here is None else here.state()))
            chosen = min((n for n, _ in waits if n is not None), key=self.names.index, default=None)
            if chosen is None:
                return False
            totals[chosen] = merged([state for n, state in waits if n == chosen])
            self.advance(1)
            if chosen not in given:
                self.targets[chosen].write(*self._estimate(chosen, totals[chosen]))
            return True

        def resolve(name: str, parts: dict[int, Part]) -> None:
            here = _pool([parts])
            if not bool(torch.isfinite(here.mean).all() & torch.isfinite(here.m2).all()):
                for number, part in parts.items():
                    _check_finite(number, name, part)
            before = uses.setdefault(name, [])
            before.append(parts)
            if len(before) == 1 and name in totals:
                late.add(name)  # settled by other processes, whose batches came here sooner
            while name not in totals:
                settle_next(name, here)

        batches = [(number, batch) for number, batch in held.replay() if number not in out]
        meeting = Meeting(self.caller, self.visits, self.names, resolve, self.order.expected, self.slots)
        attendees = meeting.run(batches)
        for attendee in attendees:
            self.order.note(tuple(attendee.names), True)
        while not self.ranks.alone and settle_next(None, None):
            pass
        several = [name for name, parts in uses.items() if len(parts) > 1 or name in late]
        reused = set(self.ranks.union(several))
        for name in sorted(reused):
            totals[name] = self.ranks.pooled(_pool(uses[name]) if name in uses else _empty(self.targets[name]))
        alike = [Alike(), Alike()]
        for attendee in attendees:
            for kind, summaries in zip(alike, attendee.summaries.values(), strict=False):
                kind.add(summaries)
        return totals, reused, alike

    # Once per layer ------------------------------------------------------------------------------------------

    def _layer_by_layer(
        self, held: Held, out: set[int], given: set[str]
    ) -> tuple[dict[str, Totals], set[str], list[Alike]]:
        settled = set(given)
        now = {
            "given": sorted(given),
            "out": self.ranks.gathered(sorted(out)),
            "batches": self.ranks.gathered(len(held)),
        }
        state = self.checkpoint.part("layers", now)
        # After a kill one process may have come further than another; what is settled is the same on all.
        furthest = max(
            self.ranks.gathered((state.get("settled", {}), state.get("counts", {}))), key=lambda s: len(s[0])
        )
        if len(furthest[0]) > len(state.get("settled", {})):
            state = {"settled": furthest[0], "counts": furthest[1]}
        for name, (mean, var) in state.get("settled", {}).items():
            self.targets[name].write(mean, var)
            settled.add(name)
        done = dict(state.get("settled", {}))
        counts = dict(state.get("counts", {}))
        partial, start = state.get("partial", {}), state.get("next", 0)
        while True:
            found = {name: Totals.from_state(saved) for name, saved in partial.items()}
            for number, batch in held.replay():
                if number in out or number < start:
                    continue
                for name, part in self._first_unsettled(number, batch, settled).items():
                    _check_finite(number, name, part)
                    found.setdefault(name, _empty(self.targets[name])).add(*(row[None] for row in _wide(part)))
                self.checkpoint.save(
                    settled=lambda: done,
                    counts=lambda: counts,
                    partial=lambda found=found: {name: totals.state() for name, totals in found.items()},
                    next=number + 1,
                )
            partial, start = {}, 0
            here = self.ranks.union([name for name in self.names if name in found])
            if not here:
                break
            for name in here:
                pooled = self.ranks.pooled(found.get(name, _empty(self.targets[name])))
                done[name] = self._estimate(name, pooled)
                self.targets[name].write(*done[name])
                counts[name] = float(pooled.count[0])
                settled.add(name)
                self.advance(1)
            self.checkpoint.save(settled=lambda: done, counts=lambda: counts, partial=dict, next=0)
        totals, reused, alike = self._verify(held, out)
        # Settled before all that reaches it had come: used again, or in another order by other batches.
        early = {name for name, count in counts.items() if name in totals and float(totals[name].count[0]) != count}
        return totals, reused | early, alike

    def _first_unsettled(self, number: int, batch: Any, settled: set[str]) -> dict[str, Part]:
        visitor = _First(settled, self.order.steady)
        with self.visits.by(visitor), contextlib.suppress(Enough):
            self.caller(batch, number)
        return visitor.found

    def _verify(self, held: Held, out: set[int]) -> tuple[dict[str, Totals], set[str], list[Alike]]:
        """What every layer receives with all statistics in place."""
        layout = Layout.of(self.targets)
        totals, reused, reached = Totals.empty(layout.owner), set[str](), set[str]()
        alike = [Alike(), Alike()]
        for number, batch in held.replay():
            if number in out:
                continue
            visitor = Measured(self.order.last)
            complete = True
            with self.visits.by(visitor):
                try:
                    self.caller(batch, number)
                except Enough:
                    complete = False
            self.order.note(tuple(visitor.names), complete)
            reached.update(visitor.names)
            reused |= {name for name in visitor.parts if visitor.names.count(name) > 1}
            n, mean, m2 = torch.zeros(3, len(layout.owner), dtype=torch.float64)
            for name, part in visitor.parts.items():
                _check_finite(number, name, part)
                n[layout.where[name]], mean[layout.where[name]], m2[layout.where[name]] = _wide(part)
            totals.add(n[None], mean[None], m2[None])
            for kind, summaries in zip(alike, visitor.summaries.values(), strict=False):
                kind.add(summaries)
        pooled = self.ranks.pooled(totals)
        names = self.ranks.union([name for name in self.names if name in reached])
        found = {name: pooled.layer(layout.where[name]) for name in names}
        return found, set(self.ranks.union(sorted(reused))), alike

    # Arithmetic ----------------------------------------------------------------------------------------------

    def _estimate(self, name: str, totals: Totals) -> tuple[Tensor, Tensor]:
        return estimate(self.targets[name], totals, self.variance)

    def _residual(self, name: str, totals: Totals) -> float:
        return distance(self.targets[name], *self._estimate(name, totals))

    def _rounding(self, name: str, totals: Totals) -> float:
        """What storing mean and variance in their dtype costs, in standard deviations."""
        mean, var = self._estimate(name, totals)
        spacing = torch.finfo(self.targets[name].stat("running_mean").dtype).eps
        scale = (var + self.targets[name].layer.eps).sqrt()
        return spacing * float(((mean / scale).square() + 1).mean().sqrt())


def estimate(target: Target, totals: Totals, variance: Variance) -> tuple[Tensor, Tensor]:
    """The mean and the variance to store for what a layer received."""
    var = totals.variance(variance, target.correction)
    if not bool(torch.isfinite(var).all()):
        raise BatchNormError(f"loader must give more than 1 value per channel; layer {target.name!r} got one in total")
    return totals.mean, var


def distance(target: Target, mean: Tensor, var: Tensor) -> float:
    """Between stored and given statistics: root mean square over channels, in standard deviations."""
    stored_mean, stored_var = target.read()
    if not target.centres:
        mean, var = torch.zeros_like(mean), var + mean.square()
    scale = (var + target.layer.eps).sqrt()
    of_mean, of_std = (stored_mean - mean) / scale, (stored_var.clamp_min(0).sqrt() - var.sqrt()) / scale
    return float((of_mean.square() + of_std.square()).mean().sqrt())


def _pool(uses: list[dict[int, Part]]) -> Totals:
    """Every batch with all its uses, in the order of the batches."""
    parts: dict[int, Part] = {}
    for use in uses:
        for number, part in use.items():
            parts[number] = parts[number].merge(part) if number in parts else part
    ordered = [parts[number] for number in sorted(parts) if parts[number].count]
    n = torch.tensor([part.count for part in ordered], dtype=torch.float64)
    mean, m2 = (torch.stack(column).cpu().double() for column in zip(*[(p.mean, p.m2) for p in ordered], strict=True))
    return Totals.of_batches(n, mean, m2)


def _empty(target: Target) -> Totals:
    return Totals.empty(torch.zeros(target.stat("running_mean").numel(), dtype=torch.long))


def _wide(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    mean, m2 = part.mean.cpu().double(), part.m2.cpu().double()
    return torch.full_like(mean, part.count), mean, m2


def _check_finite(number: int, name: str, part: Part) -> None:
    if not bool(torch.isfinite(part.mean).all() & torch.isfinite(part.m2).all()):
        raise _NotFinite(number, name)


@dataclass
class _First:
    """Measures the first layer that is not settled, and ends the forward there."""

    settled: set[str]
    may_stop: bool
    found: dict[str, Part] = field(default_factory=dict)

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        if target.name in self.settled or self.found or x.numel() == 0:
            return
        self.found[target.name] = part_of(x, weight)
        if self.may_stop:
            raise Enough


@dataclass
class Measured:
    """Measures every layer."""

    last: str | None
    names: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    summaries: dict[str, Tensor] = field(default_factory=dict)

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        """Pool what the layer receives with its earlier uses."""
        if x.numel() == 0:
            return
        part = part_of(x, weight)
        if weight is None and x.shape[0] > 1:
            self.summaries = {**dict(list(self.summaries.items())[:1]), target.name: sample_summaries(x).cpu()}
        self.parts[target.name] = self.parts[target.name].merge(part) if target.name in self.parts else part
        self.names.append(target.name)
        if target.name == self.last:
            raise Enough
