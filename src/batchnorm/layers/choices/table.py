"""The table of named methods: each name is a row of choices, nothing more."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack, get_args

from batchnorm.arguments import arguments, told
from batchnorm.errors import BatchNormError
from batchnorm.layers.choices import Choices, Recipe
from batchnorm.layers.choices.averaging import MABN, PowerNorm, UnifiedNorm
from batchnorm.layers.choices.couplings import PopulationCoupling
from batchnorm.layers.choices.cross_iteration import CrossIteration
from batchnorm.layers.choices.estimators import EMA, Cumulative, Diminishing, Pooled, Window
from batchnorm.layers.choices.extents import Ghost, Masked, Sync, Weighted
from batchnorm.layers.choices.inference import Mixture
from batchnorm.layers.choices.online import OnlineNorm
from batchnorm.layers.choices.renorm import Renorm
from batchnorm.layers.choices.spelling import CHOICES, how_to_set, nearest

Method = Literal[
    "batchnorm", "debiased", "cumulative", "pooled", "window", "diminishing", "ghost", "sync", "renorm", "population",
    "mabn", "cbn", "online", "power", "unified", "example-weighing", "masked", "weighted", "banks",
]  # fmt: skip
_MOMENT = EMA(correction=0)
_TABLE: dict[Method, tuple[Recipe, str]] = {
    "batchnorm": (Recipe(), "the batch normalises, a moving average is stored (2015)"),
    "debiased": (Recipe(estimator=EMA(debias=True)), "the moving average forgets its initial value at once"),
    "cumulative": (Recipe(estimator=Cumulative()), "the plain average over all batches, torch's momentum=None"),
    "pooled": (Recipe(estimator=Pooled()), "exact moments of everything seen, with the spread between batches"),
    "window": (Recipe(estimator=Window()), "the average over the last 10 batches"),
    "diminishing": (
        Recipe(estimator=Diminishing(), coupling=PopulationCoupling(gradient=False)),
        "the average with falling gain normalises, as a constant to the gradient (2017)",
    ),
    "ghost": (Recipe(extent=Ghost()), "groups of at least 32 samples normalise on their own (2017)"),
    "sync": (Recipe(extent=Sync()), "one batch over all processes"),
    "renorm": (
        Recipe(estimator=EMA(0.99, sigma=True, correction=0), coupling=Renorm()),
        "the batch, corrected towards the running statistics within limits (2017)",
    ),
    "population": (
        Recipe(coupling=PopulationCoupling()),
        "the running statistics, this batch included, normalise in training too",
    ),
    "mabn": (
        Recipe(estimator=EMA(0.98, correction=0), coupling=MABN()),
        "windows over batches, forwards and backwards, for 1 to 4 samples (2020)",
    ),
    "cbn": (
        Recipe(coupling=CrossIteration()),
        "the last 4 batches, carried along with the weights of the convolution before (2021)",
    ),
    "online": (
        Recipe(Ghost(1, "sequential"), EMA(0.999, total=True, correction=0), OnlineNorm()),
        "sample by sample, statistics and gradient by controllers, at batch size 1 (2019)",
    ),
    "power": (Recipe(estimator=_MOMENT, coupling=PowerNorm()), "the running second moment, for transformers (2020)"),
    "unified": (
        Recipe(estimator=_MOMENT, coupling=UnifiedNorm()),
        "the geometric mean of 4 second moments, for transformers (2022)",
    ),
    "example-weighing": (
        Recipe(inference=Mixture(weight=0.1)),
        "inference mixes the stored statistics with each example's own (2020)",
    ),
    "masked": (Recipe(extent=Masked()), "only what the mask or the lengths say is data counts"),
    "weighted": (Recipe(extent=Weighted()), "samples count by their weights"),
    "banks": (Recipe(), "statistics by name, `with bank(model, name)`, for domains, clients or widths"),
}
METHODS: dict[Method, Recipe] = {name: _TABLE[name][0] for name in get_args(Method)}


@arguments()
def methods() -> dict[Method, str]:
    """Every named method with one line about it.

    Example:
        >>> import batchnorm
        >>> batchnorm.methods()["ghost"]
        'groups of at least 32 samples normalise on their own (2017)'

    The names are what `convert(model, name)` and `BatchNorm2d(64, method=name)` take.
    """
    return {name: line for name, (_, line) in _TABLE.items()}


def recipe_for(method: Method = "batchnorm", **choices: Unpack[Choices]) -> Recipe:
    """The recipe of a named method with some of its choices replaced.

    Example:
        >>> from batchnorm.layers import recipe_for, Policy
        >>> recipe_for("debiased", policy=Policy(nonfinite="raise")).estimator.debias
        True

    Raises:
        BatchNormError: an unknown method or choice, or choices that cannot be combined.
    """
    if not isinstance(method, str) or method not in METHODS:
        meant = nearest(method, METHODS)
        legal = "a name of batchnorm.methods()" if meant else f"one of {', '.join(METHODS)}"
        raise BatchNormError(f"method must be {legal}; it was {told(method)}{meant}")
    for name, choice in choices.items():
        if name not in CHOICES:
            meant = how_to_set(name, choice, method, METHODS[method])
            raise BatchNormError(f"a choice must be one of {', '.join(CHOICES)}; it was {name!r}{meant}")
    return replace(METHODS[method], **{name: choice for name, choice in choices.items() if choice is not None})
