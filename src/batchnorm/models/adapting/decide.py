"""Whether stored statistics, the data's, or the data's in the early layers alone serve here; without a label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from batchnorm.models.adapting.evidence import Order, Samples, Shift, order_of
from batchnorm.models.adapting.predictions import Predictions

# Fixed on streams of one, three, five and all classes under half of the corruptions: benchmarks/adapt/.
FEWEST_SAMPLES = 32
LARGEST_CORRELATION = 0.1
LARGEST_P_VALUE = 0.01
# Above this the stored statistics are hardly worse than the data's.
LARGEST_PRIOR = 10.0
# Without predictions: a shift of the early layers that no mixture of contents makes.
OVERWHELMED_PRIOR = 0.05
# Fewer layers have no early ones: the first holds the content too.
FEWEST_LAYERS = 3

# Predictions fall into classes: by themselves, with a rise of the confidence for each one that changes, or sharply.
CLUSTERS, FEWER_CLUSTERS, GAIN, SHARP_CLUSTERS = 0.36, 0.28, 0.3, 0.2
# They do not.
NO_CLUSTERS = 0.3
# All classes come out alike: all layers' statistics are those of all classes.
EVEN = 0.985
# The early layers' statistics serve whatever the classes are; the confidence may fall by so much a prediction that
# changes where the stored ones tell nothing apart, and must rise by as much where they do.
EXCESS, EARLY_GAIN = 0.12, 0.2


@dataclass(frozen=True)
class Choice:
    """What `adapt` settled on, and why.

    mode is a mode of `adapt`. The rest is the evidence, None where it was not needed:
    samples read; the order of the stream; how many samples of this data the stored statistics are
    worth in the third of the layers where that is least (prior) and in the first third (early_prior);
    what is predicted with "stored", "early" and "domain" statistics (predictions).
    """

    mode: str
    reason: str
    samples: int | None = None
    order: Order | None = None
    prior: float | None = None
    early_prior: float | None = None
    predictions: Mapping[str, Predictions] | None = None

    def __str__(self) -> str:
        return f"{self.mode}: {self.reason}"


def decide(samples: dict[str, Samples], shifts: dict[str, Shift], count: int, if_sorted: str) -> Choice:
    """Stored where the data is too little, sorted, or hardly shifted; else "domain", to be tried and weighed.

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
    evidence = count, order, min(thirds), thirds[0]
    if order.correlation > LARGEST_CORRELATION and order.p_value < LARGEST_P_VALUE and if_sorted == "refuse":
        words = f"neighbours in the stream are alike (correlation {order.correlation:.2f}): it is sorted or drifts"
        return Choice("stored", words, *evidence)
    worth = f"the stored statistics are worth {min(thirds):.3g} samples of this data"
    return Choice("stored" if min(thirds) > LARGEST_PRIOR else "domain", worth, *evidence)


def weigh(choice: Choice, seen: Mapping[str, Predictions] | None) -> Choice:
    """Stored, "early" or "domain", by the predictions; where there are none, by the first layers' shift alone.

    A change of appearance is made good in the early layers; few classes where there were many move the late ones.
    Statistics of few classes, taken for those of all, leave one cloud of predictions that is cut into all classes.
    """
    if seen is None:
        if (math.inf if choice.early_prior is None else choice.early_prior) <= OVERWHELMED_PRIOR:
            return replace(choice, mode="early")
        words = "no class predictions tell appearance from content, and the first layers' shift could be either"
        return replace(choice, mode="stored", reason=f"{choice.reason}, but {words}")
    mode = "stored"
    if "early" in seen and _early_serves(seen["stored"], seen["early"]):
        mode = "early"
    if _domain_serves(seen["stored"], seen["domain"]):
        mode = "domain"
    found = "; ".join(f"{name}: {predicted}" for name, predicted in seen.items())
    return replace(choice, mode=mode, predictions=seen, reason=f"{choice.reason}; {found}")


def _early_serves(stored: Predictions, early: Predictions) -> bool:
    needed = EARLY_GAIN * (1 - early.agreement)
    apart = early.clusters >= FEWER_CLUSTERS and early.excess >= EXCESS
    return apart and early.gain >= (needed if stored.clusters > NO_CLUSTERS else -needed)


def _domain_serves(stored: Predictions, domain: Predictions) -> bool:
    return domain.evenness >= EVEN and (
        (domain.clusters >= CLUSTERS and domain.gain >= 0)
        or (domain.clusters >= FEWER_CLUSTERS and domain.gain >= GAIN * (1 - domain.agreement))
        or (domain.sharp_clusters >= SHARP_CLUSTERS and stored.clusters <= NO_CLUSTERS)
    )


def early_part(layers: Sequence[str]) -> list[str]:
    """The first third, in the order of execution."""
    return list(layers[: max(1, len(layers) // 3)])


def by_thirds(shifts: Sequence[Shift]) -> tuple[float, ...]:
    """How many samples the stored statistics are worth, in the early, the middle and the late layers."""
    size = max(1, len(shifts) // 3)
    parts = (shifts[:size], shifts[size : len(shifts) - size] or shifts[:size], shifts[-size:])
    return tuple(Shift(sum(s.shift for s in part), sum(s.spread for s in part)).prior for part in parts)
