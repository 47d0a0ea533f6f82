"""Translate a recipe into kernel arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from batchnorm.kernels import slab
from batchnorm.layers.choices.couplings import BatchCoupling, Coupling, PopulationCoupling, SecondMoment
from batchnorm.layers.choices.estimators import EMA, Cumulative, Diminishing, Falling
from batchnorm.layers.choices.extents import Batch, Ghost, Masked, Sync, Weighted
from batchnorm.layers.choices.renorm import Renorm
from batchnorm.layers.remembered import Kept, kept_by

if TYPE_CHECKING:
    from batchnorm.layers.choices.recipe import Recipe
    from batchnorm.layers.module import BatchNorm

_EXTENTS = (Batch, Ghost, Masked, Weighted, Sync)


class Way(NamedTuple):
    """What a recipe comes to natively, and what the layer still has to do itself."""

    spec: Any
    recipe: Recipe
    coupling: Coupling
    estimator_is_native: bool
    stored: bool
    activation: str | None
    slope: float
    eps: float
    momentum: Any
    kept: Kept | None = None


# Keyed by what decides; the recipe is in the value, so its id stays its own.
_ways: dict[tuple[Any, ...], Way | None] = {}


def way_of(layer: BatchNorm, kind: str, activation: str | None) -> Way | None:
    """The way of a layer, made once for all layers of the same choices."""
    recipe, momentum = layer.recipe, layer.momentum
    key = (id(recipe), kind, momentum, layer.eps, activation, layer.negative_slope)
    try:
        return _ways[key]
    except KeyError:
        pass
    except TypeError:  # a momentum that cannot be hashed
        return None
    if len(_ways) > 4096:
        _ways.clear()
    # An id is only as good as the life of its object, so nothing is kept for a recipe without a way.
    way = _make_way(recipe, kind, momentum, layer.eps, activation, layer.negative_slope)
    if way is not None:
        _ways[key] = way
    return way


def _make_way(recipe: Recipe, kind: str, momentum: Any, eps: float, activation: str | None, slope: float) -> Way | None:
    """Kind is "stored", or "tracks", or "alone" for a layer without statistics to read."""
    slope = slope if activation == "leaky_relu" else 0.0
    if kind == "stored":
        spec = slab.spec(coupling="stored", eps=eps, activation=activation, slope=slope)
        return Way(spec, recipe, recipe.coupling, True, True, activation, slope, eps, momentum)
    coupling = recipe.coupling
    if coupling.reads_population and kind == "alone":
        coupling = BatchCoupling() if coupling.centres else SecondMoment()
    move = native_move(recipe, momentum)
    coupled = native_coupling(recipe, coupling, move)
    if coupled is None:
        return None
    kept = kept_by(recipe, coupling, momentum) if kind == "tracks" else None
    if not coupling.exact and (move is None or kept is None):
        return None
    if kept is not None and move is None:
        move = {"gain": "constant", "momentum": 0.0, "correction": recipe.estimator.correction}  # pyright: ignore
    move = move or {}
    spec = slab.spec(**native_choices(recipe, coupled, move, eps, activation, slope))
    return Way(spec, recipe, coupling, bool(move), False, activation, slope, eps, momentum, kept)


def native_choices(
    recipe: Recipe, coupled: dict[str, Any], move: dict[str, Any], eps: float, activation: str | None, slope: float
) -> dict[str, Any]:
    """Everything that a training step is told, as `slab.spec` takes it."""
    return {
        "eps": eps,
        "activation": activation,
        "slope": slope if activation == "leaky_relu" else 0.0,
        **coupled,
        **move,
        "nonfinite": recipe.policy.nonfinite,
        "reliability": recipe.policy.weights == "reliability",
    }


def native_move(recipe: Recipe, momentum: Any) -> dict[str, Any] | None:
    """The estimator's step in native terms, or None."""
    estimator: Any = recipe.estimator
    kind = type(estimator)
    if kind not in (EMA, Cumulative, Diminishing):
        return None
    constant, power, falls = momentum, 1.0, False
    if isinstance(momentum, Falling) and kind is Diminishing:
        constant, power, falls = momentum.scale, momentum.power, True
    if not (constant is None or type(constant) in (float, int)):
        return None
    debias = kind is EMA and estimator.debias
    if debias and callable(estimator.decay):
        return None
    gain = "falling" if falls else "one over step" if momentum is None else "debiased" if debias else "constant"
    return {
        "gain": gain,
        "momentum": float(constant or 0.0),
        "power": float(power),
        "sigma": estimator.sigma,
        "total": estimator.total,
        "correction": estimator.correction,
    }


def native_coupling(recipe: Recipe, coupling: Coupling, move: dict[str, Any] | None) -> dict[str, Any] | None:
    """The coupling in native terms, or None."""
    kind = type(coupling)
    if kind is BatchCoupling:
        return {"coupling": "batch"}
    if kind is SecondMoment or not coupling.exact:
        return {"coupling": "second moment"}
    if isinstance(coupling, Renorm) and kind is Renorm and not callable(coupling.schedule):
        limits = {"r_max": float(coupling.r_max), "d_max": float(coupling.d_max), "schedule": coupling.schedule}
        return {"coupling": "renorm", **limits}
    if isinstance(coupling, PopulationCoupling) and kind is PopulationCoupling and move is not None:
        name = "population total" if recipe.estimator.total else "population"
        return {"coupling": name, "detached": not coupling.gradient}
    return None


def groups_of(layer: BatchNorm, x: Tensor, tracks: bool) -> int:
    """Into how many groups the batch is split; 0 where the slower spelling must serve."""
    extent = layer.recipe.extent
    if type(extent) not in _EXTENTS or (extent.sync is not None and extent.sync.size() > 1):
        return 0
    if tracks and extent.sequential:
        return 0
    n = x.shape[0]
    groups = extent.groups(n)
    fewest = n // groups * (x.numel() // (n * x.shape[1]))
    return 0 if fewest == 1 else groups
