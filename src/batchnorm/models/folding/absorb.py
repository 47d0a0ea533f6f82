"""How a convolution or linear layer takes a scale and a shift per channel into its weight and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR_MAPS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def outputs(module: Any) -> int:
    """The number of output channels."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def inputs(module: Any) -> int:
    """The number of input channels."""
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def channel_range(module: Any) -> Tensor:
    """The largest absolute weight of each output channel."""
    weight = wide(module.weight).abs()
    if isinstance(module, TRANSPOSED):
        weight = _by_group(weight, module.groups).movedim(2, 1).flatten(0, 1)
    return weight.flatten(1).amax(1)


def wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: some devices have none."""
    return tensor.detach().to("cpu", torch.float64)


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight as (groups, inputs, outputs, ...)."""
    return weight.view(groups, -1, *weight.shape[1:])


def absorb_after(module: Any, scale: Tensor, shift: Tensor) -> None:
    """Let the map give `scale * y + shift`; both `(outputs,)` in float64 on the CPU, or of length 1."""
    _plain(module)
    scale, shift = scale.expand(outputs(module)), shift.expand(outputs(module))
    weight = wide(module.weight)
    if isinstance(module, TRANSPOSED):
        grouped = _by_group(weight, module.groups)
        along = scale.view(module.groups, 1, -1, *[1] * (weight.dim() - 2))
        new = (grouped * along).view_as(weight)
    else:
        new = weight * scale.view(-1, *[1] * (weight.dim() - 1))
    _set(module, new, _bias(module) * scale + shift)


def absorb_before(module: Any, scale: Tensor, shift: Tensor) -> None:
    """Let the map take `scale * x + shift` for its input x; both `(inputs,)` in float64, or shorter runs of it.

    A convolution must not add zeros around its input, and a transposed one must be of kernel size 1
    unless shift is 0.
    """
    _plain(module)
    repeats = inputs(module) // len(scale)
    scale, shift = scale.repeat_interleave(repeats), shift.repeat_interleave(repeats)
    weight = wide(module.weight)
    tail = [1] * (weight.dim() - 2)
    if isinstance(module, nn.Linear):
        new, extra = weight * scale, weight @ shift
    elif isinstance(module, TRANSPOSED):
        new = weight * scale.view(-1, 1, *tail)
        moved = _by_group(weight * shift.view(-1, 1, *tail), module.groups)
        extra = moved.flatten(3).sum((1, 3)).flatten()
    else:
        groups = module.groups
        grouped = weight.view(groups, -1, *weight.shape[1:])
        new = (grouped * scale.view(groups, 1, -1, *tail)).view_as(weight)
        extra = (grouped * shift.view(groups, 1, -1, *tail)).flatten(2).sum(2).flatten()
    _set(module, new, _bias(module) + extra)


class PadChannels(nn.Module):
    """Pad each channel with a value of its own."""

    def __init__(self, padding: list[int], values: Tensor) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("values", values)

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.functional.pad`, channels at axis 1."""
        values: Any = self.values
        values = values.view(-1, *[1] * (input.dim() - 2))
        return functional.pad(input - values, self.padding) + values


def pad_values(scale: Tensor, shift: Tensor) -> Tensor | None:
    """What `scale * x + shift` turns into 0, per channel; None where there is no such value of moderate size."""
    dead = (scale == 0) & (shift == 0)
    values = torch.where(dead, 0.0, -shift / torch.where(scale == 0, 1.0, scale))
    usable = dead | ((scale != 0) & (values.abs() <= LARGEST_PAD))
    return values if bool(usable.all()) else None


# A larger border would lose more digits in float32 than the fold is worth.
LARGEST_PAD = 1e4


def _plain(module: Any) -> None:
    """Bake parametrizations in: the effective weight is what is scaled.

    Not by `remove_parametrizations`, which takes the property off a class that copies share.
    """
    if not parametrize.is_parametrized(module):
        return
    baked = {name: getattr(module, name).detach() for name in module.parametrizations}
    trains = any(parameter.requires_grad for parameter in module.parametrizations.parameters())
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in baked.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trains))


def _bias(module: Any) -> Tensor:
    return torch.zeros(outputs(module), dtype=torch.float64) if module.bias is None else wide(module.bias)


def _set(module: Any, weight: Tensor, bias: Tensor) -> None:
    # New parameters: the old ones may be shared with a module that is not folded into.
    trains, like = module.weight.requires_grad, {"device": module.weight.device, "dtype": module.weight.dtype}
    layout = torch.channels_last if _is_channels_last(module.weight) else torch.contiguous_format
    module.weight = nn.Parameter(weight.to(**like).contiguous(memory_format=layout), requires_grad=trains)
    module.bias = nn.Parameter(bias.to(**like), requires_grad=trains)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
