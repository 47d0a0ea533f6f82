"""The native kernels inside a compiled graph, as one operator forward and one backward.

A compiler fuses what it sees, and of batch norm it makes a slower loop than the kernels are. It sees
them as operators; what the running statistics become is copied into the buffers behind them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import calls, native, traced
from batchnorm.layers.activation import follows_residual
from batchnorm.layers.asserting import exporting
from batchnorm.layers.backends import fewest
from batchnorm.layers.choices.situation import AfterReduction
from batchnorm.layers.operands import require
from batchnorm.layers.rule import Move

# Values from which the operators outweigh the cost of calling them.
_WORTHWHILE = 1 << 19
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def forward(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> Tensor | None:
    """The layer's output in training, or None where a compiler must see the operations."""
    if not _served(layer, x, sample_weight, residual):
        return None
    require(layer, x, residual)
    recipe = layer.recipe
    groups = recipe.extent.groups(x.shape[0])
    if fewest(x.shape, groups) == 1:
        return None
    state, now = layer._situation(x.device, None, False)
    n = x.numel() // x.shape[1]
    whole = now.having(values=torch.full((1,), n, dtype=torch.float64))
    each = now if x.shape[0] % groups else now.having(values=torch.full((1,), n // groups, dtype=torch.float64))
    try:
        numbers, vectors = recipe.coupling.plan(state, each)
        move = Move() if layer.paused else recipe.estimator.move(state, whole)
    except AfterReduction:
        return None
    slope = layer.negative_slope if layer.activation == "leaky_relu" else 0.0
    values = [
        numbers.mean, numbers.share, numbers.spread, numbers.low, numbers.high, numbers.shift,
        move.gain, move.q, move.p, move.r, layer.eps, slope,
    ]  # fmt: skip
    if any(isinstance(value, Tensor) and (value.numel() != 1 or value.requires_grad) for value in values):
        return None
    handed_in = (*vectors, move.from_mean, move.from_var)
    if any(v is not None and (v.numel() != x.shape[1] or v.requires_grad) for v in handed_in):
        return None
    told = torch.stack([torch.as_tensor(value, dtype=torch.float64).reshape(()) for value in values])
    flags = [
        int(numbers.log), int(numbers.quiet), int(move.root), move.correction, int(recipe.coupling.centres),
        calls.ACTIVATIONS.index(layer.activation), int(recipe.policy.weights == "reliability"),
        calls.NONFINITE.index(recipe.policy.nonfinite),
    ]  # fmt: skip
    buffers: list[Any] = [*(layer._buffers[name] for name in _BUFFERS), layer.num_batches_skipped]
    moves = not layer.paused
    operands = x, layer.weight, layer.bias, residual, *handed_in, *buffers
    found = traced.train(*operands, told, flags, groups, moves, recipe.coupling.detached)
    if moves:
        with torch.no_grad():
            for buffer, value in zip(buffers, found[2:], strict=True):
                buffer.copy_(value)
    return found[0]


def _served(layer: Any, x: Tensor, sample_weight: Tensor | None, residual: Tensor | None) -> bool:
    """An exported graph holds standard operations alone; the rest is what the operators were not made for."""
    if exporting() or not native.enabled() or x.device.type != "cpu" or x.dtype not in native.DTYPES:
        return False
    if not layer.training or layer.frozen or not layer.track_running_stats or sample_weight is not None:
        return False
    if layer.accumulating or layer.active_bank is not None or layer.inplace:
        return False
    recipe = layer.recipe
    if recipe.extent.sync is not None or recipe.extent.requires is not None or recipe.policy.nonfinite == "raise":
        return False
    split = recipe.splits_calls(recipe.coupling, True, False) is not None
    if split or not recipe.coupling.exact or layer.memory_names:
        return False
    if residual is not None and (
        residual.dtype is not x.dtype
        or residual.shape != x.shape
        or layer.negative_slope < 0
        or not follows_residual(layer.activation)
    ):
        return False
    buffers = [layer._buffers.get(name) for name in _BUFFERS]
    if any(buffer is None for buffer in buffers) or buffers[0].dtype not in (torch.float32, torch.float64):  # pyright: ignore
        return False
    affine = [v for v in (layer.weight, layer.bias) if v is not None]
    return len({v.dtype for v in affine}) < 2 and x.numel() >= _WORTHWHILE
