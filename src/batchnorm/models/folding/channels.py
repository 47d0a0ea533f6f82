"""What a batch norm layer does at inference, as a scale and a shift per channel; and a module that does just that."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_tensor, an_axis, arguments
from batchnorm.errors import BatchNormError, OperandError
from batchnorm.layers import BatchNorm, Mixture
from batchnorm.models.activations import activation_of
from batchnorm.models.find import batch_norm_layers, frozen_eps, is_frozen_copy, without_layers
from batchnorm.models.folding.absorb import wide


class ChannelAffine(nn.Module):
    """Scale and shift each channel by constants: batch norm at inference and nothing else.

    Example:
        >>> import torch
        >>> from batchnorm.models import ChannelAffine
        >>> layer = ChannelAffine(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 3.0]))
        >>> layer(torch.ones(1, 2))
        tensor([[2., 4.]], grad_fn=<AddcmulBackward0>)

    It mixes no samples in any mode, has no buffers, and its weight and bias train like any
    parameter: what differential privacy and per-sample gradients ask for.

    Args:
        weight: `(C,)`, the factors.
        bias: `(C,)`, what is added.
        channel_axis: which axis of the input holds the channels.
    """

    @arguments(weight=a_tensor, bias=a_tensor, channel_axis=an_axis)
    def __init__(self, weight: Tensor, bias: Tensor, channel_axis: int = 1) -> None:
        super().__init__()
        if weight.dim() != 1 or weight.shape != bias.shape:
            raise BatchNormError(
                f"weight and bias must be vectors of one length; their shapes were {tuple(weight.shape)} "
                f"and {tuple(bias.shape)}"
            )
        self.weight, self.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        self.channel_axis = channel_axis

    def forward(self, input: Tensor) -> Tensor:
        """Of any rank, in the input's dtype."""
        a_tensor("input", input)
        there = -input.dim() <= self.channel_axis < input.dim()
        if not there or input.shape[self.channel_axis] != len(self.weight):
            raise OperandError(
                f"input must have {len(self.weight)} channels on axis {self.channel_axis}; its shape was "
                f"{tuple(input.shape)}"
            )
        shape = [1] * input.dim()
        shape[self.channel_axis] = len(self.weight)
        return torch.addcmul(self.bias.view(shape), input, self.weight.view(shape)).to(input.dtype)

    def extra_repr(self) -> str:
        """The number of channels, and the axis where it is not 1."""
        return f"{len(self.weight)}" + ("" if self.channel_axis == 1 else f", channel_axis={self.channel_axis}")


class Affine(NamedTuple):
    """`tail(scale * x + shift)` with float64 vectors `(C,)` on the CPU; tail is an activation or None."""

    scale: Tensor
    shift: Tensor
    tail: nn.Module | None
    channel_axis: int
    dtype: torch.dtype
    trains: bool

    def module(self, dtype: torch.dtype) -> nn.Module:
        """The affine map as a module, with the tail after it."""
        affine = ChannelAffine(self.scale.to(dtype), self.shift.to(dtype), self.channel_axis).requires_grad_(
            self.trains
        )
        return affine if self.tail is None else nn.Sequential(affine, self.tail)


def normalization_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norm layers by path, with the frozen copies of detection libraries."""
    found: dict[str, nn.Module] = dict(batch_norm_layers(model))
    found.update({name: m for name, m in model.named_modules() if is_frozen_copy(m)})
    if not found:
        raise without_layers(model)
    return {name: m for name, m in model.named_modules() if name in found}


def affine_of(layer: nn.Module) -> Affine | str:
    """What a layer does at inference, or the reason why that is no affine map per channel."""
    reason = _no_affine(layer)
    if reason is not None:
        return reason
    held: Any = layer
    mean, var, weight, bias = held.running_mean, held.running_var, held.weight, held.bias
    tail, axis = _tail_of_subclass(layer), 1
    if isinstance(layer, BatchNorm):
        mean, var = layer.stat("running_mean"), layer.stat("running_var")
        weight, bias = layer.affine_part("weight"), layer.affine_part("bias")
        axis = layer.channel_axis
        if layer.activation is not None:
            tail = activation_of(layer) if tail is None else nn.Sequential(activation_of(layer), tail)
    own = frozen_eps(layer)
    scale = torch.rsqrt(wide(var) + (held.eps if own is None else own))
    if weight is not None:
        scale = scale * wide(weight)
    shift = -wide(mean) * scale
    if bias is not None:
        shift = shift + wide(bias)
    trains = weight is not None and weight.requires_grad
    return Affine(scale, shift, tail, axis, mean.dtype if weight is None else weight.dtype, trains)


def _no_affine(layer: nn.Module) -> str | None:
    if layer._buffers.get("running_mean") is None:
        return "it has no running statistics and normalises with the batch at inference too"
    if not isinstance(layer, BatchNorm):
        return None
    recipe = layer.recipe
    if isinstance(recipe.inference, Mixture) and recipe.inference.weight != 0:
        return f"its inference {recipe.inference!r} depends on the {recipe.inference.per} at hand"
    if recipe.coupling.finishes is not None:
        return f"{recipe.coupling.finishes} follows its normalization, which is no affine map per channel"
    if recipe.extent.requires is not None or layer.__dict__.get("_given") is not None:
        return "it is given a mask or weights, and its output is zero where they are"
    return None


def _tail_of_subclass(layer: nn.Module) -> nn.Module | None:
    """The dropout and activation that some libraries' subclasses (timm's `BatchNormAct2d`) hold."""
    if not isinstance(layer, _BatchNorm):
        return None
    held = [layer._modules.get("drop"), layer._modules.get("act")]
    tail = [m for m in held if m is not None and not isinstance(m, nn.Identity)]
    return None if not tail else tail[0] if len(tail) == 1 else nn.Sequential(*tail)
