"""Cutting a batch, or what a model returned for it, into samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from batchnorm.models.batches import tensors


def sliceable(value: Any, samples: int) -> bool:
    """Whether every tensor in it has one row a sample."""
    found = list(tensors(value))
    return bool(found) and all(t.dim() > 0 and t.shape[0] == samples for t in found)


def rows(value: Any, start: int, stop: int) -> Any:
    """The samples from start to stop."""
    if isinstance(value, Tensor):
        return value[start:stop]
    if isinstance(value, Mapping):
        return {key: rows(item, start, stop) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(rows(item, start, stop) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rows(item, start, stop) for item in value))
    return value


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same batch with its first tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping) and value:
        first = next(iter(value))
        return {**value, first: replaced(value[first], change)}
    if type(value) in (tuple, list) and value:
        changed = [replaced(value[0], change), *value[1:]]
        return tuple(changed) if isinstance(value, tuple) else changed
    return value
