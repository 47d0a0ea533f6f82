"""A run in which layers normalise with what is stored: settle them on ever more batches."""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from batchnorm.errors import BatchNormError
from batchnorm.models.batches import progress_bar
from batchnorm.models.random_state import random_state, same_random_state
from batchnorm.models.recalibration.correlation import deviation_limits, uncertain_time
from batchnorm.models.recalibration.exchangeable import ordered
from batchnorm.models.recalibration.fixed_point import FixedPoint, Measured
from batchnorm.models.recalibration.memory import NO_PILOT, Pilot, available, frontier
from batchnorm.models.recalibration.part import MOST_FORWARDS, MOST_THREADS, Part, part_of_data, sentence, spread
from batchnorm.models.recalibration.run import EMPTY, END, Outcome, Run, caution
from batchnorm.models.recalibration.source import Held, batches_offered, in_stored_order
from batchnorm.models.recalibration.totals import FEWEST_BATCHES, Totals, errors_in_std

# Two forwards that differ by more, in standard deviations of a layer, were not rounding.
CLOSE_DRAWS = 1e-3


@dataclass
class Reading:
    """The data of a run, and what of them is read: all, or a part."""

    data: Held
    pilot: Pilot = NO_PILOT
    part: Part = field(default_factory=lambda: Part(0, None, True))
    plan: str = ""
    seconds: float = 0.0
    # A batch to draw for again, where the model draws random numbers in eval mode.
    random_on: Any = None
    # Of the batches in the loader, where the part is spread over it.
    numbers: list[int] | None = None

    @property
    def partial(self) -> bool:
        """Whether anything is left out."""
        return self.part.batches > 0 and not self.part.whole

    @property
    def limit(self) -> int | None:
        """The most batches to read."""
        return self.part.batches if self.partial else None

    @property
    def most_calls(self) -> int | None:
        """The most forwards of a batch to take."""
        return MOST_FORWARDS * (self.part.total or self.part.batches) if self.partial else None

    def fits(self, budget: int) -> bool:
        """Whether all batches read so far can meet."""
        if self.part.batches:
            return self.part.meet
        return self.pilot.bytes * sum(self.data.sizes) // max(1, *self.data.sizes[:1], 1) <= budget

    def number(self, read: int) -> int:
        """The number in the loader of a batch that was read."""
        return read if self.numbers is None else self.numbers[read]


class SettlingRun(Run):
    """With `upstream="population"`."""

    def outcome(self) -> Outcome:
        """Read batches until the error bar is small, and settle all layers on them."""
        until = self.settings.until
        bar = progress_bar(self.targets, self.shown, "settling layers")
        reading = Reading(Held(self.loader, self.settings.max_samples, self._budget // 2))
        try:
            with self.visits.watching(self.targets), bar as advance:
                self._plan(reading)
                self._tell(reading)
                data, limit = reading.data, reading.limit
                slots = torch.get_num_threads() if self.caller.where.type == "cpu" and self.ranks.alone else 1
                solver = self._solver(reading.most_calls)
                solver.advance = advance
                data.read(limit if until is None else min(FEWEST_BATCHES, limit or FEWEST_BATCHES))
                while True:
                    solver.slots = max(1, min(slots, len(data)))
                    meet = self.order.steady and len(data) <= MOST_THREADS and reading.fits(self._budget)
                    settled = solver.solve(data, all(self.ranks.gathered(meet)))
                    in_order = any(self.ranks.gathered(_in_order(settled.totals)))
                    at_end = data.exhausted or (limit is not None and len(data) >= limit)
                    if all(self.ranks.gathered(at_end)) or until is None:
                        break
                    errors = [(self._error(name, totals), caution(totals)) for name, totals in settled.totals.items()]
                    if all(error * caution <= until for error, caution in errors) and not in_order:
                        break
                    before = len(data)
                    more = None if in_order else _more(before, max(error for error, _ in errors) / until)
                    data.read(limit if more is None else min(more, limit or more))
                    if not any(self.ranks.gathered(len(data) > before)):
                        break
                drawn = 0.0 if reading.random_on is None else self._second_draw(reading.random_on)
        finally:
            reading.data.close()
        counts = self.ranks.gathered((settled.samples, settled.batches))
        return Outcome(
            settled.totals,
            settled.residual,
            sum(samples for samples, _ in counts),
            sum(batches for _, batches in counts),
            self.offered(data.exhausted and reading.numbers is None, settled.samples),
            tuple((reading.number(s.number), s.layer) for s in settled.skipped),
            in_order,
            any(self.ranks.gathered(any(alike.grouped() for alike in settled.alike))),
            in_stored_order(self.loader),
            settled.converged and drawn <= CLOSE_DRAWS,
            settled.rounds,
            reading.plan,
            reading.numbers is not None,
            len(self.caller.calls) / max(1, reading.part.total or len(data)),
            drawn,
        )

    def _second_draw(self, batch: Any) -> float:
        """How far apart two forwards of one batch are, at the layer where they differ most, in standard deviations."""
        draws = []
        for _ in range(2):
            draws.append(Measured(None))
            with self.visits.by(draws[-1]):
                self.caller(batch, 0)
        first, second = (draw.parts for draw in draws)
        return max((first[name].apart(second[name]) for name in first.keys() & second.keys()), default=0.0)

    @property
    def _budget(self) -> int:
        """Bytes for the activations of an exact run."""
        return available(self.caller.where) // 2 if self.settings.memory is None else self.settings.memory

    def _plan(self, reading: Reading) -> None:
        """Measure the first batch, and decide what of the data to read; a process without data decides nothing."""
        data, settings = reading.data, self.settings
        data.read(1)
        if not any(self.ranks.gathered(len(data))):
            raise BatchNormError(EMPTY)
        first = next((batch for _, batch in data.replay()), END)
        if first is END:
            return
        before = random_state(self.devices)
        reading.pilot = pilot = frontier(self.caller, self.visits, first, self.order)
        if not same_random_state(before, random_state(self.devices)):
            reading.random_on = first
        if settings.exact:
            return
        total, free = batches_offered(self.loader), available(self.caller.where)
        if total is not None and settings.max_samples is not None:
            total = min(total, -(-settings.max_samples // max(1, pilot.samples)))
        part = part_of_data(pilot, total, data.bytes_each, free, settings.memory)
        if total is None and data.again and part.batches < FEWEST_BATCHES:
            # So few batches fit that it matters how many there are.
            data.read(None)
            part = part_of_data(pilot, len(data), data.bytes_each, free, settings.memory)
            data.keep_first(part.batches)
        elif total is None and settings.until is None:
            data.read(part.batches + 1)
            if data.exhausted:
                part = Part(len(data), len(data), part.meet)
            data.keep_first(part.batches)
        reading.part = part
        if part.whole:
            return
        chosen = None
        if settings.until is None and settings.max_samples is None:
            chosen = spread(self.loader, part.batches)
        if chosen is not None:
            data.close()
            reading.data, reading.numbers = Held(chosen[0], None, free // 4), chosen[1]
            self.caller.numbers.extend(chosen[1])
        # The first forward of a process is slower than those that follow.
        start = time.perf_counter()
        self.caller(first, 0)
        reading.seconds = min(pilot.seconds, time.perf_counter() - start)

    def _tell(self, reading: Reading) -> None:
        """Say what part will be read, what error that leaves, and what all would cost."""
        part, asked = reading.part, self.settings.until
        # Layer by layer even 8 batches take many forwards; and who asks for an error is told when it is reached.
        few = reading.partial and part.meet and self.order.steady and part.batches >= FEWEST_BATCHES and asked is None
        error = self._error_of_part(reading) if any(self.ranks.gathered(few)) else None
        if not reading.partial:
            return
        said = sentence(part, reading.pilot, error, reading.seconds, reading.numbers is not None, self._budget)
        reading.plan = said if asked is None else said.replace("Reading", "Reading at most", 1)
        if self.shown:
            print(f"batchnorm.{self.settings.verb}: {reading.plan}", file=sys.stderr)

    def _error_of_part(self, reading: Reading) -> tuple[float, float] | None:
        """Between what and what the worst layer's standard error will be, from its first 8 batches settled alone.

        None where they do not tell. One batch would say too little: its layers have not yet the statistics that they
        will have, and where single batches make the spread it has seen none of them.
        """
        reading.data.read(min(FEWEST_BATCHES, reading.part.batches))
        few = Held([batch for _, batch in itertools.islice(reading.data.replay(), FEWEST_BATCHES)], None, 0)
        few.read(None)
        solver = self._solver(0)  # layers used several times are not iterated
        try:
            settled = solver.solve(few, all(self.ranks.gathered(self.order.steady)))
        except BatchNormError:
            return None  # these batches are not finite; others may be
        finally:
            few.close()
        counts = self.ranks.gathered((settled.batches, reading.part.batches))
        less = math.sqrt(sum(few for few, _ in counts) / sum(batches for _, batches in counts))
        if settled.batches < FEWEST_BATCHES:
            return None
        low, high = deviation_limits(settled.batches - 1)
        errors = [(self._error(name, t), math.sqrt(uncertain_time(t.sketches))) for name, t in settled.totals.items()]
        return less * low * max(error for error, _ in errors), less * high * max(error * long for error, long in errors)

    def _solver(self, most_calls: int | None) -> FixedPoint:
        about = self.targets, self.settings.variance, self.order, self.ranks, self.checkpoint
        return FixedPoint(self.caller, self.visits, *about, most_calls=most_calls)

    def _error(self, name: str, totals: Totals) -> float:
        eps = torch.full_like(totals.mean, self.targets[name].layer.eps)
        return float(errors_in_std(totals, eps, self.settings.variance))


def _in_order(totals: dict[str, Totals]) -> bool:
    rows = [t.sketches for t in totals.values()]
    fewest = min(map(len, rows), default=0)
    return ordered([torch.cat([row[k] for row in rows]) for k in range(fewest)])


def _more(before: int, ratio: float) -> int:
    """How many batches to read next, where the error is so many times what it may be.

    The square of an error from few batches is uncertain by sqrt(2 / batches), and a round that falls short is a
    forward of everything for nothing. Each round is half as large again as the one before, so that
    all together come to no more than three times the last.
    """
    grow = ratio**2 * (1 + math.sqrt(2 / max(1, before)))
    return math.ceil(before * min(max(grow if math.isfinite(grow) else 2.0, 1.5), 64.0))
