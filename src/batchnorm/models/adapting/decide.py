"""Whether stored statistics, or statistics mixed with the data's, serve better here; without a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchnorm.models.adapting.evidence import Order, Samples, Shift, order_of

# All fixed on digits under noise, blur, contrast and brightness: benchmarks/adapt/.
FEWEST_SAMPLES = 32
LARGEST_CORRELATION = 0.1
LARGEST_P_VALUE = 0.01
# Above this the stored statistics are hardly worse than the data's; below the other, nothing is worse than they.
LARGEST_PRIOR, OVERWHELMING_PRIOR = 4.0, 0.05
# By how much the shift must fade with depth, in prior counts.
APPEARANCE = 1.5


@dataclass(frozen=True)
class Choice:
    """What `adapt` settled on, and why.

    mode is a mode of `adapt`, or "mixed". The rest is the evidence, None where a mode was given:
    samples read; the order of the stream; how many samples of this data the stored statistics are
    worth, in the first third of the layers and in the last.
    """

    mode: str
    reason: str
    samples: int | None = None
    order: Order | None = None
    early_prior: float | None = None
    late_prior: float | None = None

    def __str__(self) -> str:
        return f"{self.mode}: {self.reason}"


def decide(samples: dict[str, Samples], shifts: dict[str, Shift], count: int, if_sorted: str) -> Choice:
    """Stored, or "mixed": the pooled data mixed with the stored statistics, each layer by its prior count.

    A change of appearance is largest in the early layers, against how samples differ there, and
    fades with depth; a change of content (one class instead of ten) grows with depth, and calls for
    no other statistics. A stream whose neighbours are alike is refused unless if_sorted is "pool":
    it then counts as the smaller number of samples that it is worth.
    """
    if count < FEWEST_SAMPLES:
        return Choice("stored", f"{count} samples are too few to tell; {FEWEST_SAMPLES} are needed", count)
    single = [found for found in samples.values() if len(found.mean) == count]
    if not single:
        return Choice("stored", "no layer sees the samples one by one, so their order cannot be judged", count)
    order = order_of(single)
    third = max(1, len(shifts) // 3)
    early, late = prior_of(list(shifts.values())[:third]), prior_of(list(shifts.values())[-third:])
    evidence = count, order, early, late
    if order.correlation > LARGEST_CORRELATION and order.p_value < LARGEST_P_VALUE and if_sorted == "refuse":
        words = f"neighbours in the stream are alike (correlation {order.correlation:.2f}): it is sorted or drifts"
        return Choice("stored", words, *evidence)
    worth = f"the stored statistics are worth {early:.3g} samples of this data in the early layers"
    if early > LARGEST_PRIOR:
        return Choice("stored", worth, *evidence)
    # Fewer layers have no depth to fade with.
    if len(shifts) >= 3 and late < APPEARANCE * early and early > OVERWHELMING_PRIOR:
        words = f"{worth} and {late:.3g} in the late ones: it differs in content rather than appearance"
        return Choice("stored", words, *evidence)
    return Choice("mixed", worth, *evidence)


def prior_of(shifts: Sequence[Shift]) -> float:
    """How many samples the stored statistics of several layers are worth together."""
    return Shift(sum(s.shift for s in shifts), sum(s.spread for s in shifts)).prior
