"""Whether stored statistics, or statistics mixed with the data's, serve better here; without a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchnorm.models.adapting.evidence import Order, Samples, Shift, order_of
from batchnorm.models.adapting.predictions import Compared

# All fixed under noise, blur, contrast and brightness, those on predictions on skewed streams too: benchmarks/adapt/.
FEWEST_SAMPLES = 32
LARGEST_CORRELATION = 0.1
LARGEST_P_VALUE = 0.01
# Above this the stored statistics are hardly worse than the data's.
LARGEST_PRIOR = 4.0
# What the late layers must come to once the layers before them are adapted, or by how much they must gain.
SMALLEST_REMAINING_PRIOR, LARGEST_GAIN = 6.0, 30.0

# Confidence must rise by this for each prediction that changes, by the second where the late layers still differ,
# and by this many standard errors.
SMALLEST_GAIN, CONTENT_GAIN, STANDARD_ERRORS = 0.06, 0.15, 2.6
# A model of fewer layers shows too little of the content in them: its adapted predictions must be this sure, always.
FEWEST_LAYERS, SMALLEST_CONFIDENCE = 3, 0.75
# Stored statistics whose predictions tell nothing apart, or so many times less, under a shift that no mixture of
# classes makes.
LEAST_INFORMATION, COLLAPSED_RATIO, OVERWHELMED_PRIOR = 0.02, 10.0, 0.05
# Predictions that tell this many times more apart serve even where they are less sure, if this little remains.
INFORMATION_RATIO, SETTLED_PRIOR = 2.5, 9.0


@dataclass(frozen=True)
class Choice:
    """What `adapt` settled on, and why.

    mode is a mode of `adapt`, or "mixed". The rest is the evidence, None where it was not needed:
    samples read; the order of the stream; how many samples of this data the stored statistics are
    worth in the third of the layers where that is least (prior), in the last third (late_prior),
    there once the layers before are adapted (remaining_prior), and in the first third (early_prior);
    what is predicted with the stored and with the adapted statistics (predictions).
    """

    mode: str
    reason: str
    samples: int | None = None
    order: Order | None = None
    prior: float | None = None
    late_prior: float | None = None
    remaining_prior: float | None = None
    early_prior: float | None = None
    predictions: Compared | None = None

    def __str__(self) -> str:
        return f"{self.mode}: {self.reason}"


def decide(samples: dict[str, Samples], shifts: dict[str, Shift], count: int, if_sorted: str) -> Choice:
    """Stored where the data is too little, sorted, or hardly shifted; else "mixed", to be tried and confirmed.

    A stream whose neighbours are alike is refused unless if_sorted is "pool": it then counts as the
    smaller number of samples that it is worth.
    """
    if count < FEWEST_SAMPLES:
        return Choice("stored", f"{count} samples are too few to tell; {FEWEST_SAMPLES} are needed", count)
    single = [found for found in samples.values() if len(found.mean) == count]
    if not single:
        return Choice("stored", "no layer sees the samples one by one, so their order cannot be judged", count)
    order = order_of(single)
    thirds = by_thirds(list(shifts.values()))
    evidence = count, order, min(thirds), thirds[-1], None, thirds[0]
    if order.correlation > LARGEST_CORRELATION and order.p_value < LARGEST_P_VALUE and if_sorted == "refuse":
        words = f"neighbours in the stream are alike (correlation {order.correlation:.2f}): it is sorted or drifts"
        return Choice("stored", words, *evidence)
    worth = f"the stored statistics are worth {min(thirds):.3g} samples of this data"
    return Choice("stored" if min(thirds) > LARGEST_PRIOR else "mixed", worth, *evidence)


def confirm(choice: Choice, shifts: dict[str, Shift]) -> Choice:
    """Mixed, or stored after all, by the late layers' shift that remains once the layers before them are adapted.

    A change of appearance is made good in the early layers and leaves little for the late ones. A
    change of content, one class instead of ten, remains: adapting to it would take the content away.
    """
    before, after = choice.late_prior, by_thirds(list(shifts.values()))[-1]
    if before is None or len(shifts) < 3 or after >= SMALLEST_REMAINING_PRIOR or after >= LARGEST_GAIN * before:
        return replace(choice, remaining_prior=after)
    words = f"{choice.reason}, {after:.3g} in the late layers when those before are adapted: its content differs"
    return replace(choice, mode="stored", reason=words, remaining_prior=after)


def weigh(choice: Choice, seen: Compared | None, layers: int) -> Choice:
    """Mixed, or stored, by the predictions; where there are none, by `confirm` and the first layers alone.

    The wrong statistics make a classifier unsure: those of a few classes when the classes are what changed,
    the stored ones when the appearance did. Two kinds of corruption hide that: one so strong that every input
    gets the same sure answer, and one that leaves sure but uninformative predictions.
    """
    content, choice = choice.mode == "stored", replace(choice, mode="mixed")
    early = math.inf if choice.early_prior is None else choice.early_prior
    overwhelmed = early <= OVERWHELMED_PRIOR
    if seen is None:
        if content:
            return replace(choice, mode="stored")
        if overwhelmed:
            return choice
        words = "no class predictions tell appearance from content, and the first layers' shift could be either"
        return replace(choice, mode="stored", reason=f"{choice.reason}, but {words}")
    remaining = math.inf if choice.remaining_prior is None else choice.remaining_prior
    small = layers < FEWEST_LAYERS
    stored, adapted = seen.stored.information, seen.adapted.information
    sure = not small or seen.adapted.confidence >= SMALLEST_CONFIDENCE
    collapsed = sure and overwhelmed and (stored <= LEAST_INFORMATION or adapted >= COLLAPSED_RATIO * stored)
    told = adapted >= INFORMATION_RATIO * stored
    settled = not content and not small and remaining >= SETTLED_PRIOR and told
    gain = CONTENT_GAIN if content else SMALLEST_GAIN
    needed = max(gain * (1 - seen.agreement), STANDARD_ERRORS * seen.standard_error)
    surer = sure and seen.gain > needed
    choice = replace(choice, predictions=seen, reason=f"{choice.reason}; {seen}")
    if collapsed or settled or surer:
        return replace(choice, reason=f"{choice.reason}: the predictions outweigh it") if content else choice
    words = "the adapted predictions are no surer, as where the classes changed and not their appearance"
    return replace(choice, mode="stored", reason=f"{choice.reason}: {words}")


def by_thirds(shifts: Sequence[Shift]) -> tuple[float, ...]:
    """How many samples the stored statistics are worth, in the early, the middle and the late layers."""
    size = max(1, len(shifts) // 3)
    parts = (shifts[:size], shifts[size : len(shifts) - size] or shifts[:size], shifts[-size:])
    return tuple(Shift(sum(s.shift for s in part), sum(s.spread for s in part)).prior for part in parts)
