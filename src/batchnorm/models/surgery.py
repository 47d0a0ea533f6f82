"""Change the batch norm layers of a model in place, and change them back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from batchnorm import layers as ours
from batchnorm.errors import BatchNormError
from batchnorm.layers import BatchNorm, Cumulative, Diminishing, Recipe, recipe_for
from batchnorm.models.find import batch_norm_layers

_TO_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ours.BatchNorm1d,
    nn.BatchNorm2d: ours.BatchNorm2d,
    nn.BatchNorm3d: ours.BatchNorm3d,
    nn.LazyBatchNorm1d: ours.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: ours.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: ours.LazyBatchNorm3d,
}
_TO_STOCK = {mine: theirs for theirs, mine in _TO_OURS.items()}


def convert(
    model: nn.Module,
    method: str = "batchnorm",
    *,
    count: int | None = None,
    custom: str = "refuse",
    **choices: Any,
) -> nn.Module:
    """Turn every batch norm layer of a model into this package's, with a named method or your choices.

    Example:
        >>> import torch, batchnorm
        >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), "debiased")
        >>> type(model[0]).__module__
        'batchnorm.layers.modules'

    The layers stay the same objects: parameters, hooks, optimizers, sharing, devices, dtypes, the
    training flag and each layer's own momentum are kept (the momentum is replaced only when an
    `estimator` is given, or the method is a cumulative one).

    Args:
        model: changed in place and returned.
        method: a name of `batchnorm.layers.METHODS`.
        count: how many batches the present statistics stand for; needed where a cumulative
            estimator meets trained statistics whose counter is 0.
        custom: "refuse" names the subclasses of torch's layers that cannot be converted without
            losing their own forward; "keep" leaves those as they are.
        **choices: extent, estimator, coupling, inference, policy.

    Raises:
        BatchNormError: no batch norm layer, an unknown method, a custom subclass; nothing is changed.
    """
    recipe = recipe_for(method, **choices)
    found = batch_norm_layers(model)
    if not found:
        raise BatchNormError(f"model must contain a batch norm layer; {type(model).__name__} has none")
    if custom not in ("refuse", "keep"):
        raise BatchNormError(f"custom must be 'refuse' or 'keep'; it was {custom!r}")
    targets: dict[str, Any] = {name: m for name, m in found.items() if type(m) in _TO_OURS or type(m) in _TO_STOCK}
    others = [f"{name or '(root)'} ({type(m).__name__})" for name, m in found.items() if name not in targets]
    if others and custom == "refuse":
        raise BatchNormError(
            f"model must hold plain torch batch norm layers; cannot convert {', '.join(others)} without "
            "losing their own forward: convert them to torch's classes first, or pass custom='keep'"
        )
    starts = {name: _start_count(name, m, recipe, count, choices) for name, m in targets.items()}
    for name, module in targets.items():
        module.__class__ = _TO_OURS.get(type(module), type(module))
        if _replaces_momentum(recipe, choices):
            module.momentum = recipe.estimator.momentum
        if not _is_lazy(module):
            module.adopt(recipe)
        else:
            module.recipe = recipe
        if starts[name] is not None:
            module.num_batches_tracked.fill_(starts[name])
    return model


def _replaces_momentum(recipe: Recipe, choices: Any) -> bool:
    return "estimator" in choices or not isinstance(recipe.estimator.momentum, float)


def _is_lazy(layer: nn.Module) -> bool:
    return isinstance(layer, LazyModuleMixin)


def _start_count(name: str, layer: Any, recipe: Recipe, count: int | None, choices: Any) -> int | None:
    """The counter a trained layer needs so that its first gain does not wipe its statistics."""
    estimator = recipe.estimator
    if layer.running_mean is None or _is_lazy(layer):
        return None
    if count is not None:
        if count < 0:
            raise BatchNormError(f"count must be 0 or more batches; it was {count}")
        return count
    trained = bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())
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


def to_stock(model: nn.Module) -> nn.Module:
    """Turn this package's layers back into plain torch ones with the same eval output.

    Example:
        >>> import torch, batchnorm
        >>> stock = batchnorm.to_stock(torch.nn.Sequential(batchnorm.BatchNorm1d(2)))
        >>> type(stock[0]) is torch.nn.BatchNorm1d
        True

    The layers stay the same objects. A layer frozen by `freeze` stays frozen (by hooks, as
    `freeze` does to stock layers). In a half-precision model weight and bias are widened to the
    statistics' float32, since torch's CPU kernels refuse the mixture and rounding the statistics
    would change the output; calling `.half()` afterwards does what it does to any stock model.

    Raises:
        BatchNormError: a subclass of this package's layers with no stock counterpart; nothing is changed.
    """
    from batchnorm.models.modes import freeze

    targets: dict[str, Any] = {n: m for n, m in batch_norm_layers(model).items() if isinstance(m, BatchNorm)}
    for name, module in targets.items():
        if type(module) not in _TO_STOCK:
            raise BatchNormError(
                f"model must hold BatchNorm1d, 2d or 3d; layer {name!r} is a {type(module).__name__}, "
                "for which torch has no class"
            )
    for module in targets.values():
        frozen = module.frozen
        module.abandon()
        module.__class__ = _TO_STOCK[type(module)]
        for parameter in (module.weight, module.bias):
            if parameter is not None and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        if frozen:
            freeze(module)
    return model
