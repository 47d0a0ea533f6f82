"""Which statistics normalise at inference: the stored ones, or a mixture with what is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from batchnorm.arguments import SHARE, arguments, number, word
from batchnorm.errors import BatchNormError
from batchnorm.layers.couplings import Plan
from batchnorm.layers.estimators import Gain, State, times
from batchnorm.layers.moments import Moments

Per = Literal["example", "batch"]


@dataclass(frozen=True)
class Stored:
    """Inference: the stored running statistics normalise."""


@arguments(weight=SHARE, prior=number("0 or more samples", lambda v: v >= 0), per=word(Per))
@dataclass(frozen=True)
class Mixture:
    """Inference: the stored statistics mixed with those of each example, or of the batch at hand.

    Example:
        >>> import torch, batchnorm
        >>> layer = batchnorm.BatchNorm2d(3, inference=batchnorm.layers.Mixture(weight=0.1)).eval()
        >>> layer(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])

    Moments mix as E[x] and E[x^2], so the variance holds the distance between the two means and is
    never negative. Statistics stay as they are. With per="example" no output depends on the other
    samples (weight 0 is plain inference, weight 1 instance norm); per="batch" with weight 1 is
    prediction-time batch norm.

    Args:
        weight: of what is at hand, in [0, 1]; or
        prior: how many samples the stored statistics stand for: n samples at hand weigh
            n / (n + prior).
        per: "example" or "batch".

    Raises:
        BatchNormError: both or neither of weight and prior, a value out of range.

    Source: Summers and Dinneen, "Four Things Everyone Should Know to Improve Batch Normalization"
    (2020), section 3.1; Schneider et al., "Improving robustness against common corruptions" (2020).
    """

    weight: float | None = None
    prior: float | None = None
    per: Per = "example"

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.prior is None):
            raise BatchNormError(f"give either weight or prior; got weight={self.weight}, prior={self.prior}")

    def groups(self, samples: int) -> int:
        """One a sample, or one."""
        return max(samples, 1) if self.per == "example" else 1

    def plan(self, here: Moments, state: State, positions: int, centred: bool) -> Plan:
        """The mixed statistics of each group, whose samples have `positions` values per channel."""
        w: Gain = self.weight if self.weight is not None else 0.0
        if self.prior is not None:
            # Samples that count: a masked one does not, one of weight 2 counts twice, one half masked by half.
            samples = here.count / positions
            w = samples / torch.where(samples + self.prior > 0, samples + self.prior, 1.0)
        mean = times(w, here.mean) + times(1 - w, state.mean)
        var = times(w, here.var(0)) + times(1 - w, state.var) + times(w * (1 - w), (here.mean - state.mean).square())
        return Plan(mean, var, w, mean, centred=centred)


Inference = Stored | Mixture
