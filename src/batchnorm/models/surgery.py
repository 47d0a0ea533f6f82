"""Change the batch norm layers of a model in place, and change them back."""

from __future__ import annotations

import math
from typing import Any, Literal, Unpack, overload

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm import layers as ours
from batchnorm.arguments import a_module, a_string, arguments, whole, word
from batchnorm.errors import BatchNormError
from batchnorm.layers import EMA, BatchNorm, Cumulative, Diminishing, Mixture, Pooled, Recipe, recipe_for
from batchnorm.layers.activation import MODULES
from batchnorm.layers.choices import Choices
from batchnorm.layers.choices.table import Method
from batchnorm.layers.held import outside
from batchnorm.layers.statistics import require_names
from batchnorm.models.activations import activation_of, set_module
from batchnorm.models.find import Model, batch_norm_layers, inner_name, is_timms, present_layers
from batchnorm.models.graph.flow import linear_maps_before
from batchnorm.models.modes import freeze
from batchnorm.models.momentum import check_momentum, next_momentum
from batchnorm.models.state import preserved

Custom = Literal["refuse", "keep"]
_TO_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ours.BatchNorm1d,
    nn.BatchNorm2d: ours.BatchNorm2d,
    nn.BatchNorm3d: ours.BatchNorm3d,
    nn.LazyBatchNorm1d: ours.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: ours.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: ours.LazyBatchNorm3d,
}
_GIVE_UP = "call batchnorm.convert(model) first, which drops it: the eval output then uses the stored statistics alone"
# What the contexts hold on this package's layers, and `pause` on torch's.
_CONTEXTS = {"paused": "pause", "_given": "masked", "active_bank": "bank", "recipe": "accumulate"}
_TO_STOCK = {mine: theirs for theirs, mine in _TO_OURS.items()}


@arguments(model=a_module, count=whole(0, "an integer of 0 or more batches"), custom=word(Custom))
def convert(
    model: Model,
    method: Method = "batchnorm",
    *,
    count: int | None = None,
    custom: Custom = "refuse",
    **choices: Unpack[Choices],
) -> Model:
    """Turn every batch norm layer of a model into this package's, with a named method or your choices.

    Example:
        >>> import torch, batchnorm
        >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), "debiased")
        >>> type(model[0]).__module__
        'batchnorm.layers.modules'

    The layers stay the same objects: parameters, hooks, optimizers, sharing, devices, dtypes, the
    training flag and each layer's own momentum are kept. The momentum is replaced where an
    `estimator` is given, or the method has one of its own (all but 0.1, torch's default); the stock
    layer's is remembered for `to_stock`. Each call sets all five choices anew.

    Args:
        model: changed in place and returned.
        method: a name of `batchnorm.methods()`.
        count: how many batches the present statistics stand for (how many values, with `Pooled`);
            needed where a cumulative estimator meets trained statistics whose counter is 0. 0
            says that they are to be forgotten.
        custom: "refuse" names the subclasses of torch's layers that cannot be converted without
            losing their own forward; "keep" leaves those as they are.
        **choices: extent, estimator, coupling, inference, policy.

    Raises:
        BatchNormError: no batch norm layer, an unknown method, a custom subclass, a momentum outside
            [0, 1], an eps below 0, inside `accumulate` or a `pause` of torch's layers, choices that
            remember under a name which a layer has already; nothing is changed.
    """
    recipe = recipe_for(method, **choices)
    found = present_layers(model)
    targets: dict[str, Any] = {name: m for name, m in found.items() if type(m) in _TO_OURS or type(m) in _TO_STOCK}
    others = {name: m for name, m in found.items() if name not in targets}
    if others and custom == "refuse":
        raise BatchNormError(_refusal(model, others))
    for name, module in targets.items():
        check_momentum(name, module)
        held = outside(module).keys() & {"recipe", "track_running_stats"}
        if held:
            context = "accumulate" if "recipe" in held else "pause"
            raise BatchNormError(f"layer {name or '(root)'!r} is inside {context}(): convert it outside the context")
        if not module.eps >= 0:
            raise BatchNormError(f"eps of layer {name or '(root)'!r} must be 0 or more; it was {module.eps}")
    starts = {name: _start_count(name, m, recipe, count, choices) for name, m in targets.items()}
    before = _maps_before(model, targets) if recipe.coupling.looks_back else {}
    for module in targets.values():
        require_names(module, _TO_OURS.get(type(module), type(module)), recipe)
    for name, module in targets.items():
        if type(module) in _TO_OURS:
            module.__class__ = _TO_OURS[type(module)]
            module.stock_momentum = (module.momentum, module.momentum)
        if _replaces_momentum(recipe, choices):
            given = recipe.estimator.momentum
            if _untouched(module):
                module.stock_momentum = (module.stock_momentum[0], given)
            module.momentum = given
        if not _is_lazy(module):
            module.adopt(recipe)
        else:
            module.recipe = recipe
        if name in before:
            with preserved(before[name]):  # in train mode, reading a parametrized weight may move it
                module.attach(before[name])
        if starts[name] is not None and isinstance(recipe.estimator, Pooled):
            module.pooled_count.fill_(starts[name])
        elif starts[name] is not None:
            module.num_batches_tracked.fill_(starts[name])
    return model


def _refusal(model: nn.Module, others: dict[str, Any]) -> str:
    """Which layers cannot be converted, and what can: a few by name."""
    named = [f"{inner_name(model, name) or '(root)'} ({type(m).__name__})" for name, m in list(others.items())[:3]]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    words = (
        f"model must hold plain torch batch norm layers; {', '.join(named)}{more} would lose what their own classes do"
    )
    if any(map(is_timms, others.values())):
        return f"{words}: batchnorm.interop.trainers.timm.convert takes timm's"
    return f"{words}: convert them to torch's classes first, or pass custom='keep'"


def _maps_before(model: nn.Module, targets: dict[str, Any]) -> dict[str, nn.Module]:
    """The convolution or linear layer before each target, for couplings that look back."""
    before = linear_maps_before(model)
    missing = [name or "(root)" for name, layer in targets.items() if name not in before or _is_lazy(layer)]
    if missing:
        raise BatchNormError(
            "model must have a convolution or linear layer right before each batch norm layer for this coupling; none "
            f"was found for {', '.join(missing)}: convert the parts that have one, or use layer.attach(conv)"
        )
    return before


def _replaces_momentum(recipe: Recipe, choices: Any) -> bool:
    return "estimator" in choices or recipe.estimator.momentum != EMA().momentum


def _untouched(layer: Any) -> bool:
    """Whether the momentum is the stock layer's, or the one that `convert` put in its place."""
    return layer.stock_momentum is not None and layer.momentum == layer.stock_momentum[1]


def _is_lazy(layer: nn.Module) -> bool:
    return isinstance(layer, LazyModuleMixin)


def _start_count(name: str, layer: Any, recipe: Recipe, count: int | None, choices: Any) -> int | None:
    """The counter a trained layer needs so that its first gain does not wipe its statistics."""
    estimator = recipe.estimator
    if layer.running_mean is None or _is_lazy(layer):
        return None
    if count is not None:
        return count
    if layer.running_mean.is_meta:
        # Its values come later, with a state dict.
        return None
    trained = bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())
    if trained and isinstance(estimator, Pooled) and "pooled_count" not in layer._buffers:
        raise BatchNormError(
            f"count must be given: layer {name!r} holds trained statistics, but the number of values behind them "
            "is not known; count=0 discards them"
        )
    if not trained or layer.num_batches_tracked is None or int(layer.num_batches_tracked) > 0:
        return None
    if isinstance(estimator, Cumulative | Diminishing):
        raise BatchNormError(
            f"count must be given: layer {name!r} holds trained statistics but its counter is 0, so a "
            "cumulative average would replace them with the first batch"
        )
    momentum = estimator.momentum if "estimator" in choices else layer.momentum
    if getattr(estimator, "debias", False) and isinstance(momentum, float) and momentum:
        # From this step on the correction (1 - momentum)^t is below float32 resolution.
        return math.ceil(math.log(2**-24) / math.log1p(-min(momentum, 1 - 1e-12)))
    return None


@overload
def to_stock(model: BatchNorm, *, bank: str | None = None) -> nn.Module: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def to_stock(model: Model, *, bank: str | None = None) -> Model: ...
@arguments(model=a_module, bank=a_string)
def to_stock(model: nn.Module, *, bank: str | None = None) -> nn.Module:
    """Turn this package's layers back into plain torch ones with the same eval output.

    Example:
        >>> import torch, batchnorm
        >>> stock = batchnorm.to_stock(torch.nn.Sequential(batchnorm.BatchNorm1d(2)))
        >>> type(stock[0]) is torch.nn.BatchNorm1d
        True

    The layers stay the same objects. A fused activation becomes a module of its own again: where
    `fuse_activations` took it from, or in a `Sequential` after the layer. A layer frozen by
    `freeze` stays frozen (by hooks, as `freeze` does to stock layers). In a half-precision model
    weight and bias are widened to the statistics' float32, since torch's CPU kernels refuse the
    mixture and rounding the statistics would change the output; calling `.half()` afterwards does
    what it does to any stock model. A momentum that `convert` replaced becomes the stock
    layer's again, unless it was set since; one that is a function of the step becomes its next
    value. Masks are no part of a stock layer: padding is normalised like data there.

    Args:
        model: changed in place and returned (a root layer with an activation comes back in a `Sequential`).
        bank: whose statistics the layers are to have; None for their own. Other banks are dropped.

    Raises:
        BatchNormError: a layer whose eval output no per-channel affine map can give, or that torch
            has no class for; a bank that is not there; inside `pause`, `masked`, `bank` or
            `accumulate`, which it would end. Nothing is changed.
    """
    targets: dict[str, Any] = {n: m for n, m in batch_norm_layers(model).items() if isinstance(m, BatchNorm)}
    for name, module in targets.items():
        reason = _no_stock(module, bank)
        if reason is not None:
            raise BatchNormError(f"layer {name or '(root)'!r} cannot be converted to a torch layer: {reason}")
    for name, module in targets.items():
        frozen, fused_from = module.frozen, module.fused_from
        # torch's layers take a number, in eval mode too.
        momentum = module.stock_momentum[0] if _untouched(module) else next_momentum(module)
        activation = None if module.activation is None else activation_of(module)
        module.abandon(bank)
        module.momentum = momentum
        module.__class__ = _TO_STOCK[type(module)]
        for parameter in (module.weight, module.bias):
            if parameter is not None and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        if frozen:
            freeze(module)
        if activation is not None:
            model = _with_activation(model, name, module, activation, fused_from)
    return model


def _no_stock(layer: Any, bank: str | None) -> str | None:
    """Why no torch layer gives this layer's eval output, or None."""
    if is_timms(layer):
        return "it is timm's, which batchnorm.interop.trainers.timm.to_stock gives back"
    if type(layer) not in _TO_STOCK:
        return f"torch has no class for {type(layer).__name__}; use BatchNorm1d, 2d or 3d"
    if layer.channel_axis != 1:
        return f"torch's layers have their channels on axis 1, this one on axis {layer.channel_axis}"
    held = [context for attribute, context in _CONTEXTS.items() if attribute in outside(layer)]
    if held:
        return f"it is inside {held[-1]}(), which a change of class would end: leave the context first"
    inference = layer.recipe.inference
    if isinstance(inference, Mixture) and inference.weight != 0:
        return f"its inference {inference!r} depends on the {inference.per} at hand; {_GIVE_UP}"
    if layer.recipe.coupling.finishes is not None:
        finishes = layer.recipe.coupling.finishes
        return f"{finishes} follows the normalization, which is no affine map per channel; {_GIVE_UP}"
    if bank is not None and bank not in layer.bank_names:
        return f"it has no bank {bank!r}; its banks are {', '.join(layer.bank_names) or 'none'}"
    return None


def _with_activation(
    model: nn.Module, name: str, layer: nn.Module, activation: nn.Module, fused_from: str | None
) -> nn.Module:
    """The activation back where it was taken from, or after the layer."""
    place: Any = dict(model.named_modules()).get(fused_from) if fused_from is not None else None
    if fused_from is not None and isinstance(place, nn.Identity):
        set_module(model, fused_from, getattr(place, "stands_for", (activation,))[0].train(place.training))
        return model
    if isinstance(dict(model.named_modules()).get(fused_from or ""), tuple(MODULES.values())) and fused_from:
        return model  # shared with a layer before, and put back for that one
    pair = nn.Sequential(layer, activation)
    if layer is model:
        return pair
    set_module(model, name, pair)
    return model
