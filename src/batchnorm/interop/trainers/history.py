"""What each recalibration of a training did: the last one alone may have found nothing left to do."""

from __future__ import annotations

from typing import NamedTuple

from batchnorm.models import Recalibration


class Call(NamedTuple):
    """One recalibration: when it was, how much it read, and how far the layer that moved most was moved.

    moved is in stored standard deviations; needed says whether that is more than the error bar explains.
    """

    when: str
    samples: int
    moved: float
    needed: bool

    def __str__(self) -> str:
        did = f"moved {self.moved:.2g} standard deviations" if self.needed else "nothing needed doing"
        return f"{self.when}: {did} ({self.samples} samples)"


class History(list[Call]):
    """The calls in their order; printed, a line each.

    Example:
        >>> print(History([Call("validation, step 40", 512, 1.93, True), Call("end", 512, 0.0, False)]))
        validation, step 40: moved 1.9 standard deviations (512 samples)
        end: nothing needed doing (512 samples)
    """

    def add(self, when: str, result: Recalibration) -> Recalibration:
        """Note what a recalibration did, and give it back; the statistics from before it are not kept."""
        moved = max((row.moved for row in result.layers.values()), default=0.0)
        self.append(Call(when, result.samples, moved, result.needed))
        return result

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "never recalibrated"
