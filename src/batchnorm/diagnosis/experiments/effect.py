"""What a change of the statistics did: before, after, and whether it matters beyond noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchnorm.models.tables import part_of

SURE = 2.6  # standard errors, 99 % of a normal distribution
HARM = 0.02  # of the distance between the metric and what guessing gives
OUTPUT = 0.1  # of the size of the output, where there is no metric
NOISE = 3.0  # times what sampling alone does to the output


@dataclass(frozen=True)
class Effect:
    """A change, measured on a copy.

    With a metric: before and after are its values, gain is how much better after is (positive: better,
    whichever way the metric goes), error the standard error of the paired difference over units
    (samples, or batches where the metric is one of batches), scale the distance to what guessing gives.

    Without: moved is the relative change of the output, noise what sampling alone makes of it.
    """

    what: str
    samples: int
    before: float = math.nan
    after: float = math.nan
    gain: float | None = None
    error: float = math.inf
    units: int = 0
    scale: float = 0.0
    moved: float | None = None
    noise: float | None = None
    # Whether a metric was given, which then does not tell the outputs from guesses.
    scored: bool = False

    @property
    def limit(self) -> float:
        """A difference that is not chance and not negligible."""
        return max(quantile(self.units) * self.error, HARM * self.scale)

    @property
    def measured(self) -> bool:
        """Whether a metric says which of the two is better."""
        return self.gain is not None

    @property
    def helps(self) -> bool | None:
        """Whether the change makes things better beyond noise; None where nothing could be measured.

        Without a metric a change of the output beyond noise counts: which side is right is not known.
        """
        if self.gain is not None:
            return self.gain > self.limit
        if self.moved is None:
            return None
        return not self.moved <= max(OUTPUT, NOISE * (self.noise or 0.0))

    @property
    def harms(self) -> bool:
        """Whether the change makes the metric worse beyond noise."""
        return self.gain is not None and -self.gain > self.limit

    def better_than(self, other: Effect) -> bool:
        """Whether the metric is better after this change than after the other: what they began with may differ."""
        if self.gain is None or other.gain is None:
            return self.gain is not None
        sign = math.copysign(1.0, (self.after - self.before) * self.gain)
        return bool(self.helps) and (self.after - other.after) * sign > 0

    def sentence(self, verb: str = "tried on a copy") -> str:
        """`0.225 -> 0.871 (+- 0.009), tried on a copy`."""
        if self.gain is not None:
            bar = f" (+- {self.error:.2g})" if math.isfinite(self.error) else " (one unit: no error bar)"
            return f"metric {self.before:.4g} -> {self.after:.4g}{bar}, {verb}, {self.samples} samples"
        if self.moved is None:
            return "not measured"
        alone = "" if self.noise is None else f" (sampling alone: {part_of(self.noise, '')})"
        unknown = (
            "the metric is no better than guessing, so it does not show whether that is harm"
            if self.scored
            else "without metric= it is not known whether that is harm"
        )
        return f"output changes by {part_of(self.moved, '')}{alone}, {verb}, {self.samples} samples; {unknown}"


def quantile(units: int) -> float:
    """Student's 99 % quantile (two-sided), which is SURE for many units.

    Source: Hill (1970) by way of the expansion of Cornish and Fisher, within 2 % above 4 degrees of freedom.
    """
    df = units - 1
    if df < 1:
        return math.inf
    z = 2.5758
    known = {1: 63.66, 2: 9.925, 3: 5.841, 4: 4.604}
    if df in known:
        return known[df]
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return max(SURE, z + g1 / df + g2 / df**2 + g3 / df**3)
