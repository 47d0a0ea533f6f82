"""The five choices a layer is made of, gathered in a `Recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypedDict

from torch import Tensor

from batchnorm.arguments import arguments, instance, word
from batchnorm.errors import BatchNormError, check
from batchnorm.layers.choices.couplings import BatchCoupling, Coupling
from batchnorm.layers.choices.estimators import EMA, Estimator
from batchnorm.layers.choices.extents import Batch, Extent
from batchnorm.layers.choices.inference import Inference, Mixture, Stored
from batchnorm.layers.choices.situation import Schedule, State

# The words of a policy; checkers and the check at run time read the same ones.
NonFinite = Literal["skip", "raise", "propagate"]
TooFew = Literal["raise", "population"]
WeightsAre = Literal["frequency", "reliability"]
# What a layer's `momentum` may be; "estimator" leaves it to the estimator.
Momentum = float | Schedule | Literal["estimator"] | None


@arguments(nonfinite=word(NonFinite), too_few=word(TooFew), weights=word(WeightsAre))
@dataclass(frozen=True)
class Policy:
    """What happens with non-finite batches, with too few values, and what sample weights mean.

    nonfinite: a batch whose mean or variance is NaN or infinite in any channel is skipped and
    counted in `num_batches_skipped` ("skip"), stops the run ("raise"), or enters the statistics
    for ever as in torch ("propagate"). too_few: one value per channel is an error as in torch
    ("raise"), or is normalised with the running statistics, which stay ("population"). An empty
    batch changes nothing, not even the counter. weights: sample weights are repetitions
    ("frequency": weight 2 is the sample twice) or precisions ("reliability"), which decides how the
    stored variance is corrected for its own mean.

    Raises:
        BatchNormError: another word for any of them.
    """

    nonfinite: NonFinite = "skip"
    too_few: TooFew = "raise"
    weights: WeightsAre = "frequency"


@arguments(
    extent=instance(Extent, "an extent, such as batchnorm.layers.Ghost()"),
    estimator=instance(Estimator, "an estimator, such as batchnorm.layers.EMA()"),
    coupling=instance(Coupling, "a coupling, such as batchnorm.layers.Renorm()"),
    inference=instance((Stored, Mixture), "an inference, such as batchnorm.layers.Mixture(0.1)"),
    policy=instance(Policy, "a batchnorm.layers.Policy()"),
)
@dataclass(frozen=True)
class Recipe:
    """A method of batch normalization: extent, estimator, coupling, inference and policy.

    Raises:
        BatchNormError: choices of the wrong kind, or that cannot be combined, with the reason.
    """

    extent: Extent = field(default_factory=Batch)
    estimator: Estimator = field(default_factory=EMA)
    coupling: Coupling = field(default_factory=BatchCoupling)
    inference: Inference = field(default_factory=Stored)
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        reason = self.coupling.refuses(self) or _sequential_refuses(self) or _precisions_refuse(self)
        if reason is not None:
            raise BatchNormError(f"these choices cannot be combined: {reason}")

    def memories(self, mean: Tensor, var: Tensor, before: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What estimator and coupling remember, as it starts from these statistics, under names that differ."""
        state, trained, coupling = State(mean, var), (mean != 0).any() | (var != 1).any(), self.coupling
        mine, back = self.estimator.memory(state, trained), coupling.looks_back and before is not None
        theirs: Any = coupling.memory_before(state, before.weight) if back else coupling.memory(state, trained)  # pyright: ignore
        both = sorted(mine.keys() & theirs.keys())
        if both:
            raise BatchNormError(f"{self.estimator!r} and {coupling!r} must not both remember {both[0]!r}: rename one")
        return mine, theirs

    @property
    def reads_population(self) -> bool:
        """Whether a forward in training may meet the running statistics, which one that runs again must meet too."""
        return self.coupling.reads_population or self.policy.too_few == "population"

    def splits_calls(self, coupling: Coupling, tracks: bool, stored: bool) -> str | None:
        """Why no single native call makes a step with this coupling in use, or None."""
        if self.coupling.finishes is not None:
            return f"{self.coupling.finishes} follows the normalisation"
        if tracks and self.extent.sequential:
            return "each group meets what its predecessor left"
        if stored and self.inference.mixes:
            return "inference mixes the stored statistics with those at hand"
        if coupling.looks_back:
            return "the population follows the weights of the layer before"
        if coupling.statistics is not None:
            return "its statistics are a function of the moments that no numbers give"
        return None


class Choices(TypedDict, total=False):
    """The five choices as keyword arguments; None leaves a choice to the method."""

    extent: Extent | None
    estimator: Estimator | None
    coupling: Coupling | None
    inference: Inference | None
    policy: Policy | None


def is_momentum(momentum: Any) -> bool:
    """Whether it is None, a function of the step, or a weight of the new batch in [0, 1]."""
    if momentum is None or callable(momentum):
        return not isinstance(momentum, type)
    # A tensor of one value is a number to torch.
    number = isinstance(momentum, Real) or (isinstance(momentum, Tensor) and momentum.numel() == 1)
    return number and not isinstance(momentum, bool) and 0 <= float(momentum) <= 1


def starting_momentum(momentum: Any, recipe: Recipe) -> Any:
    """A layer's momentum: the one given, checked, or the estimator's own where the word "estimator" stands."""
    if isinstance(momentum, str) and momentum == "estimator":
        return recipe.estimator.momentum
    legal = "in [0, 1], the weight of the new batch, None or a function of the step"
    check(is_momentum(momentum), "momentum", legal, repr(momentum))
    return momentum


def _precisions_refuse(recipe: Recipe) -> str | None:
    if recipe.estimator.counts_values and recipe.policy.weights == "reliability":
        return (
            "a pooled variance counts values, and weights that are precisions have no count: use Policy(weights="
            "'frequency'), or an average of the batches' variances such as EMA or Window"
        )
    return None


def _sequential_refuses(recipe: Recipe) -> str | None:
    if not recipe.extent.sequential:
        return None
    if not (isinstance(recipe.estimator, EMA) and recipe.estimator.streams):
        return "sequential updates need a plain moving average of constant decay: use estimator=EMA(...)"
    if recipe.coupling.counts_batches:
        name = type(recipe.coupling).__name__
        return f"{name} counts batches, and sequential updates have none: use Ghost(size, update='pooled')"
    return None
