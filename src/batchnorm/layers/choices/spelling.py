"""How choices are written: in a layer's repr as they act, and in messages as one would type them."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from typing import Any

from batchnorm.errors import BatchNormError
from batchnorm.layers.choices import Choices, Recipe
from batchnorm.layers.choices.estimators import EMA, Estimator

CHOICES = tuple(Choices.__annotations__)


def differences(recipe: Recipe, momentum: Any) -> list[str]:
    """What differs from plain batch norm, as `choice=...`."""
    default = Recipe()
    kept = {name: getattr(recipe, name) for name in CHOICES if getattr(recipe, name) != getattr(default, name)}
    if "estimator" in kept:
        kept["estimator"] = _as_used(recipe.estimator, momentum)
    return [f"{name}={choice!r}" for name, choice in kept.items()]


def _as_used(estimator: Estimator, momentum: Any) -> Any:
    """The estimator with the decay in use: the layer's momentum is read at every call, the decay is not."""
    if not isinstance(estimator, EMA) or momentum == estimator.momentum:
        return estimator
    if isinstance(momentum, (float, int)) and 0 < momentum <= 1:
        return replace(estimator, decay=round(1 - momentum, 15))
    return _Without(estimator, "decay")


class _Without:
    """A choice whose repr leaves one field out."""

    def __init__(self, choice: Any, field: str) -> None:
        self.choice, self.field = choice, field

    def __repr__(self) -> str:
        shown = [f for f in fields(self.choice) if f.name != self.field]
        return f"{type(self.choice).__name__}({', '.join(f'{f.name}={getattr(self.choice, f.name)!r}' for f in shown)})"


def nearest(word: Any, known: Any) -> str:
    """`: did you mean 'debiased'?` where a known word is near, else nothing."""
    close = get_close_matches(str(word).lower(), list(known), 1)
    return f": did you mean {close[0]!r}?" if close else ""


def how_to_set(name: str, value: Any, method: str, recipe: Recipe) -> str:
    """What to write for something that was given as a choice and is none."""
    if get_close_matches(name, CHOICES, 1):
        return nearest(name, CHOICES)
    number = isinstance(value, (float, int)) and not isinstance(value, bool)
    if name == "momentum" and number and isinstance(recipe.estimator, EMA):
        return f": set layer.momentum, or here estimator={_written(recipe.estimator, 'decay', round(1 - value, 15))}"
    homes = {f.name: choice for choice in CHOICES for f in fields(getattr(recipe, choice)) if f.init}
    bare = {field.replace("_", ""): field for field in homes}
    close = get_close_matches(name.replace("_", "").lower(), list(bare), 1, 0.75)
    if not close:
        return ": a method's parameters are set in its choices, as in coupling=batchnorm.layers.Renorm(r_max=3.0)"
    field = bare[close[0]]
    written = _written(getattr(recipe, homes[field]), field, value)
    return f": a parameter of {method!r} is set in its choice, {homes[field]}={written}"


def _written(choice: Any, field: str, value: Any) -> str:
    """The choice as typed, with one field set and those kept that differ from their defaults."""
    kept = {
        f.name: getattr(choice, f.name) for f in fields(choice) if f.init and getattr(choice, f.name) != _default(f)
    }
    try:
        type(choice)(**{**kept, field: value})
    except BatchNormError:
        kept = {}
    plain = value is None or isinstance(value, (bool, int, float, str))
    given = {name: repr(what) for name, what in kept.items()} | {field: repr(value) if plain else "..."}
    return f"batchnorm.layers.{type(choice).__name__}({', '.join(f'{name}={what}' for name, what in given.items())})"


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()
