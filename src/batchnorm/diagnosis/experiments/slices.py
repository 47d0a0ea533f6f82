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
    return mapped(value, lambda t: t[start:stop])


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same batch or output with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: mapped(item, change) for key, item in value.items()}
        try:
            # An output class whose items are attributes too.
            return type(value)(**items)
        except Exception:
            return items
    if type(value) in (tuple, list):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
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
