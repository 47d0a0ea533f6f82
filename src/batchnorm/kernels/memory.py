"""Memory for outputs: blocks used before, since a page's first touch costs more than the arithmetic on it.

The system's allocator gives a large tensor's memory back when the tensor is freed, and the next one
faults its pages in anew. The pool keeps the memory of outputs and gradients that the kernels made and
hands it out again; how much may lie idle is limited.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError, check
from batchnorm.kernels.extension import DTYPES, extension

# Smaller tensors are served from memory that the system's allocator keeps.
_LEAST = 1 << 19
_from_dlpack: Any = torch._C._from_dlpack  # pyright: ignore[reportAttributeAccessIssue]


def like(x: Tensor) -> Tensor:
    """An uninitialised tensor with the shape, dtype and strides of a dense one on the CPU."""
    if extension is None or x.numel() * x.element_size() < _LEAST:
        return torch.empty_like(x)
    capsule = extension.lend(DTYPES[x.dtype], x.shape, x.stride())
    return torch.empty_like(x) if capsule is None else _from_dlpack(capsule)


def keep_idle(limit: int) -> None:
    """Keep at most so many bytes for outputs to come; 0 leaves all memory to torch's allocator.

    Example:
        >>> from batchnorm.kernels import memory
        >>> memory.keep_idle(256 << 20)
        >>> memory.keep_idle(1 << 30)  # as it was

    The environment variable `BATCHNORM_IDLE_BYTES` sets it at import.

    Raises:
        BatchNormError: a negative limit.
    """
    check(limit >= 0, "limit", "at least 0 bytes", limit)
    if extension is not None:
        extension.keep_idle(limit)


def idle() -> int:
    """How many bytes lie idle now."""
    return 0 if extension is None else extension.idle()


def _from_environment() -> None:
    told = os.environ.get("BATCHNORM_IDLE_BYTES")
    if told is None:
        return
    if not told.isdecimal():
        raise BatchNormError(f"BATCHNORM_IDLE_BYTES must be a number of bytes; it was {told!r}")
    keep_idle(int(told))


_from_environment()
