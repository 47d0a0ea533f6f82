"""Which statistics normalise at inference: the stored ones, or a mixture with what is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from batchnorm.arguments import SHARE, arguments, number, word
from batchnorm.errors import BatchNormError
from batchnorm.kernels.shapes import or_one
from batchnorm.layers.choices.situation import Gain, State
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import Numbers, Vectors, times

Per = Literal["example", "batch"]


@dataclass(frozen=True)
class Stored:
    """Inference: the stored running statistics normalise."""

    mixes = False


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

    mixes = True

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.prior is None):
            raise BatchNormError(f"give either weight or prior; got weight={self.weight}, prior={self.prior}")

    def groups(self, samples: int) -> int:
        """One a sample, or one."""
        return max(samples, 1) if self.per == "example" else 1

    def plan(self, here: Moments, state: State, positions: int, centred: bool) -> tuple[Numbers, Vectors]:
        """The mixed statistics of each group, whose samples have `positions` values per channel."""
        w: Gain = self.weight if self.weight is not None else 0.0
        if self.prior is not None:
            # Samples that count: a masked one does not, one of weight 2 counts twice, one half masked by half.
            samples = here.count / positions
            w = samples / or_one(samples + self.prior)
        rest = times(1 - w, state.var)
        if not centred:
            return Numbers(0.0, w, 1.0), Vectors(rest=rest)
        return Numbers(w, w, 1 - w), Vectors(state.mean, rest=rest)


Inference = Stored | Mixture
