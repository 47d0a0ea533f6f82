"""Parallel branches: layers that do not wait for one another share one message over processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from batchnorm import kernels
from batchnorm.arguments import a_module, a_tensor, arguments, several_of
from batchnorm.errors import check
from batchnorm.layers.activation import activate
from batchnorm.layers.module import BatchNorm
from batchnorm.layers.passing import Sharing, respelled
from batchnorm.layers.processes.ranks import Ranks, pool_together, sums_together


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
    parts = [_part_of(layer, x) for layer, x in zip(called, entered, strict=True)]
    if all(part is not None and part[1].ranks.state is parts[0][1].ranks.state for part in parts):
        outputs = []
        for layer, y in zip(called, _outputs(called, parts), strict=True):
            y = activate(y, layer.activation, layer.negative_slope, None)
            outputs.append(y if layer.channel_axis == 1 else y.movedim(1, layer.channel_axis))
    else:
        outputs = [layer.forward(x) for layer, x in zip(called, entered, strict=True)]
    return [_after(layer, x, y) for layer, x, y in zip(called, entered, outputs, strict=True)]


def _may(layers: list[Any]) -> bool:
    """Whether these layers share statistics over processes now, in a way that can go together."""
    if torch.compiler.is_compiling() or len(set(map(id, layers))) < max(2, len(layers)):
        return False
    for layer in layers:
        if not isinstance(layer, BatchNorm) or not layer.training or layer.frozen or layer._given is not None:
            return False
        if layer.recipe.extent.requires is not None:
            return False
        sync = layer.recipe.extent.sync
        if sync is None or sync.size() == 1 or layer._backward_hooks or layer._backward_pre_hooks:
            return False
    return True


def _part_of(layer: Any, x: Tensor) -> Any:
    """The input, channels second, and whom its statistics are shared with; None where the layer must run alone."""
    recipe, x = layer.recipe, x if layer.channel_axis == 1 else x.movedim(layer.channel_axis, 1)
    layer._check_input_dim(x)
    ranks = layer._ranks()
    alone = not recipe.coupling.is_plain or recipe.extent.splits or recipe.policy.too_few == "population"
    if alone or type(ranks) is not Ranks or torch.is_inference_mode_enabled():
        return None
    return x, Sharing(1, None, recipe.policy.weights == "reliability", True, ranks, True)


def _outputs(layers: list[Any], parts: list[Any]) -> list[Tensor]:
    """The outputs before activation, from one message of all."""
    with torch.no_grad():
        own = [sharing.own_moments(x, kernels.select(x).reduce) for x, sharing in parts]
        pooled = pool_together([sharing.ranks for _, sharing in parts], own)
    records: list[Any] = []

    def now(x: Tensor, weight: Any, bias: Any, residual: Any, call: Any) -> Tensor:
        with torch.no_grad():
            y = call.forward(x, weight, bias, residual)
        records.append((call, x, weight, bias, y))
        return y

    for layer, (x, sharing), batch in zip(layers, parts, pooled, strict=True):
        tracks = layer.track_running_stats and layer.running_mean is not None
        layer._coupled(x, sharing, layer.recipe.coupling, tracks, batch, now)
    outputs: list[Tensor] = [record[4] for record in records]
    if not torch.is_grad_enabled():
        return outputs
    flat = [t for record in records for t in record[1:4]]
    return list(_Together.apply([record[0] for record in records], outputs, *flat))  # pyright: ignore


class _Together(torch.autograd.Function):
    """Outputs that were made together, whose backward sends one message."""

    @staticmethod
    def forward(ctx: Any, calls: list[Any], outputs: list[Tensor], *flat: Any) -> tuple[Tensor, ...]:
        """Keep x, weight and bias of every layer."""
        ctx.save_for_backward(*flat)
        ctx.calls = calls
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        """One message with the sums of all layers, whichever of them anybody needs."""
        needs, flat = ctx.needs_input_grad[2:], ctx.saved_tensors
        told = []
        for i, (call, g) in enumerate(zip(ctx.calls, grads, strict=True)):
            x, weight, bias = flat[3 * i : 3 * i + 3]
            told.append((call, g, x, weight, bias, None, (*needs[3 * i : 3 * i + 3], False)))
        found: list[Any] = []
        if torch.is_grad_enabled():
            for call, g, x, weight, bias, y, wants in told:
                found += respelled(call, g, x, weight, bias, y, (*wants, False))[:3]
            return None, None, *found
        begun = [call.begin(*rest) for call, *rest in told]
        everybodys = sums_together([call.sharing.ranks for call in ctx.calls], [sums for sums, _ in begun])
        for (_, end), sums in zip(begun, everybodys, strict=True):
            found += end(*sums)[:3]
        return None, None, *found


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
