"""Which backend serves each layer of a model, and why nothing faster does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from batchnorm import kernels
from batchnorm.arguments import a_module, arguments, or_none
from batchnorm.kernels import native, triton
from batchnorm.kernels.triton.geometry import cut
from batchnorm.layers import BatchNorm, device
from batchnorm.layers.backends import Whole, ready_of, whole_call
from batchnorm.layers.masks import MaskInput, weight_of
from batchnorm.models.state import preserved


@arguments(model=or_none(a_module))
def backends(model: nn.Module | None = None, x: Any = None) -> dict[str, str]:
    """Every backend and its state on this machine; with a model, which one runs each layer, and why not a faster.

    Example:
        >>> import torch, batchnorm
        >>> list(batchnorm.backends())
        ['native', 'triton', 'torch', 'reference']
        >>> model = torch.nn.Sequential(batchnorm.BatchNorm1d(4, method="online"))
        >>> batchnorm.backends(model, torch.randn(8, 4))["0"].split(": ")[1]
        'an activation clamp follows the normalisation'

    The model runs once on x in the mode it is in, and is afterwards as it was. Without x each layer is asked about a
    small batch of its own kind.

    Args:
        model: any module; its layers of this package are told of.
        x: what the model is called with, a tuple for several arguments.

    Returns:
        One line for each backend, or for each layer by its path.

    Raises:
        BatchNormError: a model that is no module, and what the layers raise.
    """
    if model is None:
        return kernels.backends()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}
    found: dict[str, str] = {}

    def hook(name: str) -> Any:
        def told(layer: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
            weighed = MaskInput(given.get("mask"), given.get("lengths"), given.get("weights"))
            weight = weight_of(layer, inputs[0].movedim(layer.channel_axis, 1), weighed)
            with torch.enable_grad():
                found[name] = _serves(layer, inputs[0], weight, given.get("residual"))

        return told

    with preserved(model), torch.no_grad():
        for name, layer in layers.items():
            layer.register_forward_pre_hook(hook(name), with_kwargs=True)
            if x is None:
                layer(_small(layer))
        if x is not None:
            model(*x) if isinstance(x, tuple) else model(x)
    return found


def _small(layer: BatchNorm) -> Tensor:
    """A small batch that the layer takes."""
    axes = layer._axes[-1] if layer._axes else 2
    sample = next((t for t in (layer.running_mean, layer.weight) if t is not None), torch.empty(0))
    x = torch.randn(8, layer.num_features, *[2] * (axes - 2)).to(sample)
    return x.movedim(1, layer.channel_axis)


def _serves(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> str:
    """What runs this call, in words, and why nothing faster does."""
    if layer.channel_axis != 1:
        x, residual = (None if t is None else t.movedim(layer.channel_axis, 1) for t in (x, residual))  # pyright: ignore
    if x.dim() == 3 and not x.is_contiguous():
        x = x.contiguous()
    settled = ready_of(layer)
    if not x.is_cpu or triton.interpreted():
        return _on_device(layer, x, sample_weight, residual, settled)
    found = whole_call(layer, x, sample_weight, residual)
    if isinstance(found, Whole):
        if found.sync is not None:
            return "native calls around the rule: the statistics are shared over processes"
        return "native: one call forward and one back"
    if settled.stored and not layer.recipe.inference.mixes:
        return f"torch's batch norm kernel: {found}"
    coupling, sync = layer.recipe.coupling, settled.sync
    alone = layer.recipe.extent.groups(len(x)) == 1 and (sync is None or sync.size() == 1)
    if coupling.is_plain and sample_weight is None and alone and not settled.stored:
        return f"torch's batch norm kernel: {found}"
    if not native.serves(x):
        return f"torch operations: {found}"
    split = not settled.stored and coupling.statistics is None and not coupling.looks_back
    return f"{'native calls around the rule' if split else 'native passes and the rule in torch'}: {found}"


def _on_device(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None, settled: Any) -> str:
    found = whole_call(layer, x, sample_weight, residual, device.KERNELS)
    if not isinstance(found, str):
        n = "one" if cut(found.x, found.call.last, found.call.sharing.groups).alone else "three"
        return f"triton: {n} launch{'' if n == 'one' else 'es'} forward and {n} back"
    alone = settled.sync is None or settled.sync.size() == 1
    plain = layer.recipe.coupling.is_plain and layer.recipe.extent.groups(len(x)) == 1 and sample_weight is None
    if (settled.stored and not layer.recipe.inference.mixes) or (plain and alone and not settled.stored):
        return f"torch's batch norm kernel: {found}"
    return f"{'triton passes and the rule in torch' if triton.serves(x) else 'torch operations'}: {found}"
