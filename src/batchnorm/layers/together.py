"""Parallel branches: layers that do not wait for one another share one message over processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from batchnorm.arguments import a_module, a_tensor, arguments, several_of
from batchnorm.errors import check
from batchnorm.layers import fused, shared
from batchnorm.layers.activation import activate
from batchnorm.layers.module import BatchNorm


@arguments(layers=several_of(a_module), inputs=several_of(a_tensor))
def forward_together(layers: Iterable[nn.Module], inputs: Iterable[Tensor]) -> list[Tensor]:
    """Run several layers, each on its own input, with one message between processes instead of one per layer.

    Example:
        >>> import torch, batchnorm
        >>> left, right = batchnorm.BatchNorm2d(4), batchnorm.BatchNorm2d(8)
        >>> a, b = batchnorm.forward_together([left, right], [torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3)])
        >>> a.shape, b.shape
        (torch.Size([2, 4, 3, 3]), torch.Size([2, 8, 3, 3]))

    For the branches of a model: no input may depend on another layer's output. Outputs, gradients and
    running statistics are those of `[layer(x) for layer, x in zip(layers, inputs)]`, and that is what runs in
    a single process, at inference, under `torch.compile`, and where a layer is another than plain batch
    normalization over one process group (a method, ghost groups, a mask), has backward hooks, or stands in the list
    twice. The backward sends one message too, when the gradients of all outputs have come; an output that is
    not used counts as a gradient of zero. All ranks must call it alike.

    Args:
        layers: batch norm layers, or any other modules.
        inputs: as many tensors.

    Returns:
        The outputs, in order.

    Raises:
        BatchNormError: another number of inputs than of layers, and what the layers raise.
    """
    called: list[Any] = list(layers)
    given = list(inputs)
    check(len(called) == len(given), "inputs", f"one for each of {len(called)} layers", len(given))
    if not _may(called):
        return [layer(x) for layer, x in zip(called, given, strict=True)]
    entered = [_before(layer, x) for layer, x in zip(called, given, strict=True)]
    parts = [layer.part(x) for layer, x in zip(called, entered, strict=True)]
    if all(part is not None and part.ranks.circle is parts[0].ranks.circle for part in parts):
        outputs = [
            activate(y, layer.activation, layer.negative_slope, None)
            for layer, y in zip(called, shared.forward(parts), strict=True)
        ]
        outputs = [
            y if layer.channel_axis == 1 else y.movedim(1, layer.channel_axis)
            for layer, y in zip(called, outputs, strict=True)
        ]
    else:
        outputs = [layer.forward(x) for layer, x in zip(called, entered, strict=True)]
    return [_after(layer, x, y) for layer, x, y in zip(called, entered, outputs, strict=True)]


def _may(layers: list[Any]) -> bool:
    """Whether these layers share statistics over processes now, in a way that can go together."""
    if torch.compiler.is_compiling() or len(set(map(id, layers))) < max(2, len(layers)):
        return False
    for layer in layers:
        if not isinstance(layer, BatchNorm) or not layer.training or layer.frozen or not fused.unweighted(layer):
            return False
        sync = layer.recipe.extent.sync
        if sync is None or sync.size() == 1 or layer._backward_hooks or layer._backward_pre_hooks:
            return False
    return True


def _before(layer: nn.Module, x: Any) -> Any:
    """What the layer's forward pre-hooks make of its input."""
    for key, hook in (*hooks._global_forward_pre_hooks.items(), *layer._forward_pre_hooks.items()):
        if key in layer._forward_pre_hooks_with_kwargs:
            found: Any = hook(layer, (x,), {})
            found = None if found is None else found[0]
        else:
            found = hook(layer, (x,))
        if found is not None:
            x = found[0] if isinstance(found, tuple) else found
    return x


def _after(layer: nn.Module, x: Any, y: Any) -> Any:
    """What the layer's forward hooks make of its output."""
    for key, hook in (*hooks._global_forward_hooks.items(), *layer._forward_hooks.items()):
        told: Any = (layer, (x,), {}, y) if key in layer._forward_hooks_with_kwargs else (layer, (x,), y)
        found = hook(*told)
        y = y if found is None else found
    return y
