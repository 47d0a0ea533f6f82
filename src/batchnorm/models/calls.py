"""Layers that are called several times in a forward: one for each call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from batchnorm.arguments import a_function, a_module_with_shapes, arguments, some_batches
from batchnorm.errors import BatchNormError
from batchnorm.models.batches import call, numbered
from batchnorm.models.find import Model, tracking_layers
from batchnorm.models.state import held


class Calls(nn.Module):
    """Batch norm layers that take turns within a forward; they share weight and bias."""

    def __init__(self, layer: Any, calls: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(copy.deepcopy(layer) for _ in range(calls))
        for one in self.each:
            one.weight, one.bias = layer.weight, layer.bias
        self.count = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer of this call makes of the input; the last one's for any further call."""
        self.count += 1
        return self.each[min(self.count, len(self.each)) - 1](*args, **kwargs)


def _begin(model: nn.Module, args: Any) -> None:
    for module in model.modules():
        if isinstance(module, Calls):
            module.count = 0


@arguments(model=a_module_with_shapes, loader=some_batches, forward_fn=a_function)
def separate_calls(
    model: Model, loader: Iterable[Any], *, forward_fn: Callable[[nn.Module, Any], Any] | None = None
) -> Model:
    """Put one layer for each call where a layer is called several times in a forward, with shared weight and bias.

    Example:
        >>> import torch, batchnorm
        >>> class Siamese(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm = torch.nn.BatchNorm1d(2)
        ...     def forward(self, x):
        ...         return self.norm(x) - self.norm(x + 4)
        >>> model, data = Siamese(), torch.randn(64, 2)
        >>> _ = batchnorm.recalibrate(batchnorm.models.separate_calls(model, data.split(16)), data.split(16))
        >>> [round(float(layer.running_mean.mean() - data.mean()), 3) for layer in model.norm.each]
        [0.0, 4.0]

    For branches that see unlike data: each call keeps statistics of its own. They start as copies, so recalibrate
    before the model is used. The state_dict has one layer more for each call; load it into a model that was treated
    alike. The calls are counted from the start of each forward of the model itself.

    Args:
        model: changed in place and returned, in the mode that it was in; its forward must call its layers in one order.
        loader: its first batch shows how often each layer is called. See `recalibrate` for its forms.
        forward_fn: `forward_fn(model, batch)` where calling the model is not enough.

    Raises:
        BatchNormError: no batch norm layer with running statistics, an empty loader.
    """
    layers = tracking_layers(model)
    calls = dict.fromkeys(layers, 0)

    def count(name: str) -> Any:
        def see(module: nn.Module, args: Any) -> None:
            calls[name] += 1

        return see

    hooks = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    try:
        with held(model):
            for batch in numbered(loader):
                call(model, batch, forward_fn, number=0)
                break
            else:
                raise BatchNormError("loader must yield at least one batch; it was empty")
    finally:
        for hook in hooks:
            hook.remove()
    several: dict[Any, Calls] = {layers[n]: Calls(layers[n], number) for n, number in calls.items() if number > 1}
    for module in list(model.modules()):
        for name, child in module._modules.items() if not isinstance(module, Calls) else ():
            if child in several:
                module._modules[name] = several[child]
    if several:
        model.register_forward_pre_hook(_begin)
    return model
