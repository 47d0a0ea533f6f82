"""The five choices a layer is made of, gathered in a `Recipe`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from batchnorm.errors import check
from batchnorm.layers.couplings import BatchCoupling, Coupling
from batchnorm.layers.estimators import EMA, Estimator


@dataclass(frozen=True)
class Batch:
    """Extent: all samples of the batch share statistics."""


@dataclass(frozen=True)
class Stored:
    """Inference: the stored running statistics normalise."""


@dataclass(frozen=True)
class Policy:
    """What happens at the edges.

    nonfinite: a batch whose mean or variance is NaN or infinite in any channel is skipped and
    counted in `num_batches_skipped` ("skip"), stops the run ("raise"), or enters the statistics
    for ever as in torch ("propagate"). too_few: one value per channel is an error as in torch
    ("raise"), or is normalised with the running statistics, which stay ("population"). An empty
    batch changes nothing, not even the counter.

    Raises:
        BatchNormError: another word for either.
    """

    nonfinite: Literal["skip", "raise", "propagate"] = "skip"
    too_few: Literal["raise", "population"] = "raise"

    def __post_init__(self) -> None:
        check(
            self.nonfinite in ("skip", "raise", "propagate"),
            "nonfinite",
            "'skip', 'raise' or 'propagate'",
            repr(self.nonfinite),
        )
        check(
            self.too_few in ("raise", "population"),
            "too_few",
            "'raise' or 'population'",
            repr(self.too_few),
        )


@dataclass(frozen=True)
class Recipe:
    """A method of batch normalization: extent, estimator, coupling, inference and policy."""

    extent: Batch = field(default_factory=Batch)
    estimator: Estimator = field(default_factory=EMA)
    coupling: Coupling = field(default_factory=BatchCoupling)
    inference: Stored = field(default_factory=Stored)
    policy: Policy = field(default_factory=Policy)
