"""The table of named methods: each name is a row of choices, nothing more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchnorm.errors import BatchNormError
from batchnorm.layers.choices import Recipe
from batchnorm.layers.couplings import PopulationCoupling
from batchnorm.layers.estimators import EMA, Cumulative, Pooled

METHODS: dict[str, Recipe] = {
    "batchnorm": Recipe(),
    "debiased": Recipe(estimator=EMA(debias=True)),
    "cumulative": Recipe(estimator=Cumulative()),
    "pooled": Recipe(estimator=Pooled()),
    "population": Recipe(coupling=PopulationCoupling()),
}


def recipe_for(method: str = "batchnorm", **choices: Any) -> Recipe:
    """The recipe of a named method with some of its choices replaced.

    Example:
        >>> from batchnorm.layers import recipe_for, Policy
        >>> recipe_for("debiased", policy=Policy(nonfinite="raise")).estimator.debias
        True

    Raises:
        BatchNormError: an unknown method.
    """
    if method not in METHODS:
        raise BatchNormError(f"method must be one of {', '.join(METHODS)}; it was {method!r}")
    return replace(METHODS[method], **{name: choice for name, choice in choices.items() if choice is not None})
