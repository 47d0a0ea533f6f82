"""Which statistics normalise in training, and what flows back through them: numbers, and vectors of the population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from batchnorm.arguments import a_flag, arguments
from batchnorm.layers.choices.inherited import forget
from batchnorm.layers.choices.situation import Now, State
from batchnorm.layers.moments import Moments
from batchnorm.layers.rule import NOTHING, UNCENTRED, Numbers, Pull, Sums, Vectors, times


class Coupling:
    """The choice "which statistics normalise in training?"."""

    reads_population: bool = True
    # False: no mean is subtracted, running_var is the second moment and running_mean stays 0.
    centres: bool = True
    # False: the backward uses running averages and is not the derivative of the forward.
    exact: bool = True
    # Whether it needs the layer before, whose weights made the input.
    looks_back: bool = False
    # Whether `remember` asks for the mean and variance of before the batch.
    remembers_population: bool = True
    # Whether it keeps windows or warm-ups in units of batches.
    counts_batches: bool = False
    # Whether one value per channel is enough to normalise a group.
    takes_one_value: bool = False
    # Whether the batch's own mean and variance normalise, and nothing else, as torch's kernels do.
    is_plain: bool = False

    # For statistics that no numbers give: a method `(batch, state, now)` that returns mean and variance of each group,
    # in operations that autograd follows. They take the four passes.
    statistics: Any = None
    # Whether the statistics are constants to the gradient, by the coupling's own wish.
    detached: bool = False
    # The name of what `finish` does, where no affine map per channel can do it.
    finishes: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forget(cls, _SAYS)

    def untracked(self) -> Coupling:
        """What stands in for it in a layer without statistics."""
        if not self.reads_population:
            return self
        return BatchCoupling() if self.centres else SecondMoment()

    def refuses(self, recipe: Any) -> str | None:
        """Why these choices cannot be combined, or None."""
        return None

    def memory(self, state: State, trained: Tensor) -> dict[str, Tensor]:
        """The buffers it needs beside mean and variance, as they start from these statistics."""
        return {}

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """What normalises, as numbers for the rule."""
        raise NotImplementedError

    def remember(self, state: State, now: Now, batch: Moments) -> dict[str, Any]:
        """What changes in its memory after this forward; batch holds the pooled moments."""
        return {}

    def pull(self, state: State, now: Now, numbers: Numbers, sums: Sums | None) -> Pull | None:
        """What takes the derivative's place, only where `exact` is False; None where it takes the sums, not given yet.

        It is asked when backward runs; state is of that time, and numbers are those of the forward.
        """
        raise NotImplementedError

    def learn(self, state: State, now: Now, numbers: Numbers, sums: Sums, pull: Pull) -> dict[str, Any]:
        """What changes in its memory after this backward."""
        return {}

    def finish(self, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """What is done to the layer's output, in training and at inference; weight `(N, 1, *)` is 0 at padding."""
        return y


_SAYS = {
    "is_plain": (False, ("plan", "statistics")),
    "reads_population": (True, ("plan", "statistics")),
    "remembers_population": (True, ("remember",)),
    "exact": (False, ("pull",)),
    "finishes": ("its own finish", ("finish",)),
}


@dataclass(frozen=True)
class BatchCoupling(Coupling):
    """Normalise with the batch's own mean and biased variance (Ioffe and Szegedy 2015, algorithm 1)."""

    reads_population = remembers_population = False
    is_plain = True

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """The batch's statistics, share 1."""
        return _PLAIN


@dataclass(frozen=True)
class SecondMoment(Coupling):
    """Normalise with the batch's root mean square, no mean subtracted."""

    reads_population = False
    centres = False

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """E[x^2] of the batch, share 1."""
        return UNCENTRED, NOTHING


_PLAIN = Numbers(), NOTHING


@arguments(gradient=a_flag)
@dataclass(frozen=True)
class PopulationCoupling(Coupling):
    """Normalise with the population as updated by this batch: `gain * batch + (1 - gain) * running`.

    Example:
        >>> import batchnorm
        >>> from batchnorm.layers import PopulationCoupling
        >>> layer = batchnorm.BatchNorm1d(4, coupling=PopulationCoupling(), momentum=0.5)

    The gradient flows through the current batch's share alone. At gain 1 this is plain batch
    normalization; at small gains it is what Equinox calls mode="ema", which trains less stably
    because the gradient's own statistics are weighted by the gain too. With `EMA(total=True)` the
    moments mix as E[x] and E[x^2] (fast.ai's running batch norm), otherwise mean and variance do.

    Args:
        gradient: False treats the statistics as constants (Diminishing Batch Normalization).
    """

    gradient: bool = True
    detached = property(lambda self: not self.gradient)  # pyright: ignore

    def refuses(self, recipe: Any) -> str | None:
        """An average of standard deviations has no linear share of the batch."""
        if getattr(recipe.estimator, "sigma", False):
            return "a population coupling needs an estimator of the variance: use EMA(sigma=False)"
        return None

    def plan(self, state: State, now: Now) -> tuple[Numbers, Vectors]:
        """Mean and variance interpolated; the share is the gain."""
        a, rest = now.estimator.gain(state, now), now.estimator.rest(state, now)
        spread = 1 - a if now.estimator.total else 0.0
        return Numbers(a, a, spread), Vectors(rest.mean, rest=times(1 - a, rest.var))
