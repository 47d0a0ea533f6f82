"""What a layer normalises: its input, or what its own class makes of the input first."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNorm
from batchnorm.layers.masks import MaskInput, weight_of

Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def received(layer: _BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """A layer's input with its channels second, and its mask or sample weights `(N, 1, *)` if it has any."""
    x: Tensor = args[0] if args else kwargs["input"]
    x = x.detach()
    if not isinstance(layer, BatchNorm):
        return x, None
    x = x.movedim(layer.channel_axis, 1)
    mask = args[1] if len(args) > 1 else kwargs.get("mask")
    return x, weight_of(layer, x, MaskInput(mask, kwargs.get("lengths"), kwargs.get("weights")))


def on_input(layer: nn.Module, hook: Hook) -> Any:
    """Call `hook(layer, args, kwargs)` with what a layer normalises, before it does, until `.remove()` of the result.

    A subclass of torch's layers may turn or flatten its input and hand it on to torch's forward, which
    first checks the shape of what it is given: there it is seen. Where it hands nothing on this time, as in one mode
    alone, its own input is seen: before it does in eval mode, and afterwards in train mode.
    """
    if isinstance(layer, BatchNorm) or not _hands_on(type(layer).forward):
        return layer.register_forward_pre_hook(hook, with_kwargs=True)
    inputs = layer.__dict__.get("_check_input_dim")
    if not isinstance(inputs, _Inputs):
        inputs = layer.__dict__["_check_input_dim"] = _Inputs(layer)
    inputs.hooks.append(hook)
    return _Handle(inputs, hook)


class _Inputs:
    """Stands before a layer's check of its input's shape, and beside its own forward, which may not come by there."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.hooks = layer, list[Hook]()
        self.before = layer.__dict__.get("_check_input_dim")
        # Whether torch's forward was reached in this call, and in any of eval mode; whether a call only asks for that.
        self.handed_on = self.ever = self.asks = False
        begin = layer.register_forward_pre_hook(self.begin, with_kwargs=True)
        self.handles = begin, layer.register_forward_hook(self.end, with_kwargs=True)

    def __call__(self, x: Tensor) -> None:
        self.handed_on = True
        self.ever |= not self.layer.training
        check: Any = self.before or type(self.layer)._check_input_dim.__get__(self.layer)  # pyright: ignore
        check(x)
        if not self.asks:
            self.tell((x,), {})

    def tell(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call every hook."""
        for hook in list(self.hooks):
            hook(self.layer, args, kwargs)

    def begin(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In eval mode, where a call changes nothing, see whether it hands on before it counts."""
        self.handed_on = False
        if layer.training or self.ever:
            return
        self.asks = True
        try:
            with torch.no_grad():
                output = layer.forward(*args, **kwargs)
        finally:
            self.asks = False
        self.end(layer, args, kwargs, output)
        self.handed_on = True  # told, one way or the other

    def end(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Tell of a call that normalised by itself."""
        x = next(iter((*args, *kwargs.values())), None)
        normalised = isinstance(x, Tensor) and x is not output and x.numel() and x.shape[1:2] == (layer.num_features,)
        if normalised and not self.handed_on:
            self.tell((x,), {})


class _Handle:
    def __init__(self, inputs: _Inputs, hook: Hook) -> None:
        self.inputs, self.hook = inputs, hook

    def remove(self) -> None:
        """Leave the layer as it was, once the last is gone."""
        self.inputs.hooks.remove(self.hook)
        if not self.inputs.hooks:
            own = self.inputs.layer.__dict__
            for handle in self.inputs.handles:
                handle.remove()
            del own["_check_input_dim"]
            if self.inputs.before is not None:
                own["_check_input_dim"] = self.inputs.before


@lru_cache
def _hands_on(forward: Any) -> bool:
    """Whether a forward is not torch's, and calls another one."""
    code = getattr(forward, "__code__", None)
    if code is None or forward in (_BatchNorm.forward, torch.nn.SyncBatchNorm.forward):
        return False
    return "__class__" in code.co_freevars or not {"super", "forward"}.isdisjoint(code.co_names)
