"""Conditions on values of tensors: an error in eager mode, an assertion in compiled code, no waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.layers.naming import describe

# What a batch must be, as every back end says it.
FINITE = "batch statistics must be finite"
SEVERAL = "training needs at least 2 unmasked values per channel, over all ranks"
REPEATED = (
    "weights that count repetitions must sum to more than 1 per channel; "
    "Policy(weights='reliability') accepts any scale"
)


def require(condition: Tensor, message: str, layer: nn.Module | None = None) -> None:
    """Raise a `BatchNormError` where the condition is false; on a device, and in a graph, when it gets there."""
    try:
        torch._assert_async(condition, message)
    except RuntimeError as error:
        # The layer's path is looked for here alone: a compiler does not follow that.
        raise BatchNormError(message if layer is None else f"{message}: {describe(layer)}") from error


def tracing() -> bool:
    """Whether `torch.jit.trace` (or an exporter on top of it) records the operations."""
    return torch._C._get_tracing_state() is not None


# Before torch 2.7 nothing tells an export from another compiler.
exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def transformed() -> bool:
    """Whether a functorch transform or forward-mode AD is at work."""
    return (
        # Of the interpreter itself a compiler says that it is not None, whether there is one or not.
        torch._C._functorch.maybe_current_level() is not None  # pyright: ignore[reportAttributeAccessIssue]
        or torch.autograd.forward_ad._current_level >= 0
    )
