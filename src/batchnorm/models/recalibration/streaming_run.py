"""A run in which layers normalise with their batches: stream, and stop when the error bar is small enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from batchnorm.errors import BatchNormError
from batchnorm.models.batches import count_samples, progress_bar
from batchnorm.models.objects import all_tensors
from batchnorm.models.recalibration.exchangeable import ordered
from batchnorm.models.recalibration.run import EMPTY, END, Outcome, Run, caution
from batchnorm.models.recalibration.source import ahead, fingerprint, in_stored_order, limited
from batchnorm.models.recalibration.streaming import Stream, none_finite
from batchnorm.models.recalibration.totals import FEWEST_BATCHES, errors_in_std


class StreamingRun(Run):
    """With `upstream="batch"`."""

    def outcome(self) -> Outcome:
        """Read the data once."""
        stream = Stream.over(self.targets)
        stream.order = self.order
        stream.load(self.checkpoint.part("stream", {}))
        batches = limited(ahead(self.loader), self.settings.max_samples)
        start, code = stream.read, 0
        # Whoever comes from a checkpoint has been told at the goals before that it was not enough.
        passed = max(self.ranks.gathered(stream.read))
        goal = FEWEST_BATCHES
        while goal < stream.read:
            goal = _next(goal)
        ended = False
        with self.visits.watching(self.targets), progress_bar(self.loader, self.shown, "recalibrating") as advance:
            while not ended:
                batch = next(batches, END)
                ended = batch is END
                if not ended:
                    if self.checkpoint.path is not None:
                        code = fingerprint(all_tensors(batch), 1 << 12) ^ (code << 1 & 0xFFFFFFFF)
                    advance(1)
                    if start:
                        start -= 1
                        if start:
                            continue
                        if code != stream.code:
                            raise BatchNormError("resume needs the same batches again; the loader gave others")
                    else:
                        stream.add(self.caller, self.visits, batch, count_samples(batch))
                        stream.code = code
                        self.checkpoint.save(stream=stream.state)
                if self.settings.until is not None and (ended or stream.read >= goal):
                    # Every process comes here after the same number of batches, or when it has no more.
                    asked, goal = goal, _next(goal)
                    if asked < passed:
                        stream.settle()  # where the run before the kill did
                    elif self._enough(stream, ended):
                        break
                    ended = ended and self.ranks.alone
        _close(batches)
        pooled = self.ranks.pooled(stream.settle())
        counts = self.ranks.gathered((stream.samples, stream.batches, stream.read))
        reached = self.ranks.union(list(stream.reached))
        if not any(read for _, _, read in counts):
            raise BatchNormError(EMPTY)
        if not any(good for _, good, _ in counts):
            first = self.ranks.gathered(stream.skipped[0].layer if stream.skipped else None)
            raise none_finite(next(name for name in first if name is not None), sum(read for _, _, read in counts))
        flags = self.ranks.gathered((ordered(stream.totals.sketches), stream.alike.grouped()))
        found = {name: pooled.layer(where) for name, where in stream.layout.where.items() if name in reached}
        return Outcome(
            found,
            dict.fromkeys(found, math.nan),
            sum(samples for samples, _, _ in counts),
            sum(good for _, good, _ in counts),
            self.offered(ended, stream.samples),
            tuple((s.number, s.layer) for s in stream.skipped),
            any(is_sorted for is_sorted, _ in flags),
            any(is_grouped for _, is_grouped in flags),
            in_stored_order(self.loader),
        )

    def _enough(self, stream: Stream, ended: bool) -> bool:
        if all(self.ranks.gathered(ended)):
            return True
        pooled = self.ranks.pooled(stream.settle())
        targets = self.targets.values()
        eps = [torch.full((t.stat("running_mean").numel(),), t.layer.eps, dtype=torch.float64) for t in targets]
        worst = float(errors_in_std(pooled, torch.cat(eps), self.settings.variance).max()) * caution(pooled)
        if worst > (self.settings.until or 0):
            return False
        return not any(self.ranks.gathered(ordered(stream.totals.sketches)))


def _close(batches: Iterator[Any]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def _next(goal: int) -> int:
    return max(goal + 1, goal + goal // 8)
