"""The five choices a layer is made of, gathered in a `Recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from batchnorm.errors import BatchNormError, check
from batchnorm.layers.couplings import BatchCoupling, Coupling
from batchnorm.layers.estimators import EMA, Estimator, Pooled, Window
from batchnorm.layers.extents import Batch, Extent
from batchnorm.layers.inference import Inference, Stored


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

    nonfinite: Literal["skip", "raise", "propagate"] = "skip"
    too_few: Literal["raise", "population"] = "raise"
    weights: Literal["frequency", "reliability"] = "frequency"

    def __post_init__(self) -> None:
        legal = {
            "nonfinite": ("skip", "raise", "propagate"),
            "too_few": ("raise", "population"),
            "weights": ("frequency", "reliability"),
        }
        for name, words in legal.items():
            value = getattr(self, name)
            listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
            check(value in words, name, listed, repr(value))


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
        kinds = {"extent": Extent, "estimator": Estimator, "coupling": Coupling, "policy": Policy}
        for name, kind in kinds.items():
            value = getattr(self, name)
            check(isinstance(value, kind), name, f"one of the choices of {name}", repr(value))
        reason = self.coupling.refuses(self) or _sequential_refuses(self) or _precisions_refuse(self)
        if reason is not None:
            raise BatchNormError(f"these choices cannot be combined: {reason}")


def is_momentum(momentum: Any) -> bool:
    """Whether it is None, a function of the step, or a weight of the new batch in [0, 1]."""
    return momentum is None or callable(momentum) or (not isinstance(momentum, str) and 0 <= momentum <= 1)


def starting_momentum(momentum: Any, recipe: Recipe) -> Any:
    """A layer's momentum: the one given, checked, or the estimator's own where the word "estimator" stands."""
    if isinstance(momentum, str) and momentum == "estimator":
        return recipe.estimator.momentum
    check(
        is_momentum(momentum),
        "momentum",
        "in [0, 1], the weight of the new batch, None or a function of the step",
        repr(momentum),
    )
    return momentum


def _precisions_refuse(recipe: Recipe) -> str | None:
    estimator = recipe.estimator
    pools = isinstance(estimator, Pooled) or (isinstance(estimator, Window) and estimator.total)
    if pools and recipe.policy.weights == "reliability":
        return (
            "a pooled variance counts values, and weights that are precisions have no count: use Policy(weights="
            "'frequency'), or an average of the batches' variances such as EMA or Window"
        )
    return None


def _sequential_refuses(recipe: Recipe) -> str | None:
    if not recipe.extent.sequential:
        return None
    estimator = recipe.estimator
    if not isinstance(estimator, EMA) or callable(estimator.decay) or estimator.debias:
        return "sequential updates need a plain moving average of constant decay: use estimator=EMA(...)"
    if recipe.coupling.counts_batches:
        name = type(recipe.coupling).__name__
        return f"{name} counts batches, and sequential updates have none: use Ghost(size, update='pooled')"
    return None
