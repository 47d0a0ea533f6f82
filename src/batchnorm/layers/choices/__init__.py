"""The five choices a layer is made of: pure functions to the numbers of the rule, and the table of named methods."""

from batchnorm.layers.choices.recipe import (
    Choices,
    Momentum,
    NonFinite,
    Policy,
    Recipe,
    TooFew,
    WeightsAre,
    is_momentum,
)

__all__ = ["Choices", "Momentum", "NonFinite", "Policy", "Recipe", "TooFew", "WeightsAre", "is_momentum"]
