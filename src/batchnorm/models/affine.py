"""What surrounds a method: centred weights before it, and the decay of its weight and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from batchnorm.arguments import NOT_NEGATIVE, a_module, a_tensor, arguments
from batchnorm.errors import BatchNormError
from batchnorm.models.find import Model, batch_norm_layers, without_layers
from batchnorm.models.graph.flow import linear_maps_before


class Centred(nn.Module):
    """Take off each filter's mean over inputs and positions; a parametrization of a weight.

    Example:
        >>> import torch
        >>> from torch.nn.utils import parametrize
        >>> from batchnorm.models import Centred
        >>> conv = torch.nn.Conv2d(3, 4, 3)
        >>> _ = parametrize.register_parametrization(conv, "weight", Centred())
        >>> bool(conv.weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True
    """

    def forward(self, weight: Tensor) -> Tensor:
        """The weight without its means."""
        a_tensor("weight", weight)
        return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)


@arguments(model=a_module)
def center_weights(model: Model) -> Model:
    """Centre the weights of the convolution or linear layer before each batch norm layer that takes off no mean.

    Example:
        >>> import torch, batchnorm
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        >>> net = batchnorm.models.center_weights(batchnorm.convert(net, "mabn"))
        >>> bool(net[0].weight.mean((1, 2, 3)).abs().max() < 1e-6)
        True

    MABN, PowerNorm and Unified Normalization divide by second moments and leave the mean to the
    weights. The raw weight stays the trained parameter, under `parametrizations.weight.original`;
    `torch.nn.utils.parametrize.remove_parametrizations` bakes the centring in.

    Args:
        model: changed in place and returned.

    Raises:
        BatchNormError: such a layer whose input is not certainly made by one such map; nothing is changed.

    Source: Yan et al., "Towards Stabilizing Batch Statistics in Backward Propagation" (2020).
    """
    before = linear_maps_before(model)
    targets: list[nn.Module] = []
    for name, layer in batch_norm_layers(model).items():
        recipe: Any = getattr(layer, "recipe", None)
        if recipe is None or recipe.coupling.centres:
            continue
        if name not in before:
            raise BatchNormError(
                f"model must have a convolution or linear layer before {name or '(root)'!r} for its weight to be "
                "centred; none was found: register Centred() on the right one by hand"
            )
        targets.append(before[name])
    for target in targets:
        if not _is_centred(target):
            parametrize.register_parametrization(target, "weight", Centred())
    return model


def _is_centred(module: nn.Module) -> bool:
    held = getattr(module, "parametrizations", {})
    return "weight" in held and any(isinstance(p, Centred) for p in held["weight"])


@arguments(model=a_module, weight_decay=NOT_NEGATIVE, gamma=NOT_NEGATIVE, beta=NOT_NEGATIVE)
def parameter_groups(
    model: nn.Module, weight_decay: float, *, gamma: float = 0.0, beta: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups in which the weight and bias of batch norm layers have decays of their own.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> groups = batchnorm.models.parameter_groups(model, 1e-4, gamma=1e-5)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.0001, 2), (1e-05, 1), (0.0, 1)]

    An optimizer's decay pulls to 0. To pull gamma to 1, add `affine_penalty` to the loss instead.

    Args:
        model: its trainable parameters are divided, each once.
        weight_decay: of everything that is not a batch norm's.
        gamma: of batch norm weights.
        beta: of batch norm biases.

    Raises:
        BatchNormError: a negative decay, a model without batch norm.

    Source: Summers and Dinneen, "Four Things Everyone Should Know to Improve Batch Normalization" (2020).
    """
    weights, biases = _affine_parameters(model)
    own = {id(p) for p in (*weights, *biases)}
    others = [p for p in model.parameters() if id(p) not in own]
    parts = ((others, weight_decay), (weights, gamma), (biases, beta))
    return [
        {"params": [p for p in part if p.requires_grad], "weight_decay": decay}
        for part, decay in parts
        if any(p.requires_grad for p in part)
    ]


@arguments(model=a_module)
def affine_penalty(model: nn.Module) -> Tensor:
    """The sum of (gamma - 1)^2 and beta^2 over all batch norm layers, to be weighted and added to a loss.

    Example:
        >>> import torch, batchnorm
        >>> float(batchnorm.models.affine_penalty(torch.nn.BatchNorm1d(3)).detach())
        0.0

    Raises:
        BatchNormError: a model without batch norm.
    """
    weights, biases = _affine_parameters(model)
    terms = [(w - 1).square().sum() for w in weights] + [b.square().sum() for b in biases]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _affine_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    found = batch_norm_layers(model)
    if not found:
        raise without_layers(model)
    parts: dict[str, list[nn.Parameter]] = {"weight": [], "bias": []}
    for layer in found.values():
        for name, parameter in layer.named_parameters(recurse=False):
            # A bank's own end in the same words.
            parts["weight" if name.endswith("weight") else "bias"].append(parameter)
    return parts["weight"], parts["bias"]
