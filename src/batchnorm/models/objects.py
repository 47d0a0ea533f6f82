"""Tensors that are attributes of objects: graphs, outputs of models, distributions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from batchnorm.models.values import ATOMS, slots_of

# Objects inside objects; further on lies the whole program.
_DEPTH = 4
_CLOSED = (*ATOMS, nn.Module, FunctionType, MethodType, BuiltinFunctionType, ModuleType)


def items_of(value: Any) -> list[Any]:
    """What a container holds, or an object in its attributes; properties are not asked."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list, set, frozenset)):
        return list(value)
    return [held for _, held in _attributes(value)]


def _attributes(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, _CLOSED):
        return []
    held: Any = getattr(value, "__dict__", None)
    found = dict(held) if isinstance(held, dict) else {}
    found.update({name: getattr(value, name) for name in slots_of(value) if hasattr(value, name)})
    return list(found.items())


def all_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value of any structure, once for each place that holds it, objects' attributes included."""
    seen: set[int] = set()

    def walk(value: Any, depth: int) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif not isinstance(value, _CLOSED) and id(value) not in seen and depth < _DEPTH:
            # Not twice: objects may lead in circles.
            seen.add(id(value))
            plain = isinstance(value, (Mapping, tuple, list))
            for item in items_of(value):
                yield from walk(item, depth + (not plain))

    return walk(value, 0)


def private(value: Any, floating: Any = None) -> Any:
    """A copy of an object whose floating-point tensors have this dtype; the object itself where it cannot be copied."""
    if isinstance(value, _CLOSED):
        return value
    try:
        copied = copy.deepcopy(value)
    except Exception:
        return value
    if floating is not None:
        _cast(copied, floating, set(), 0)
    return copied


def _cast(value: Any, dtype: Any, seen: set[int], depth: int) -> None:
    """Cast the tensors that an object, or a dict or list in it, holds; in place, so that references stay."""
    if isinstance(value, (*_CLOSED, Tensor)) or id(value) in seen or depth > 2 * _DEPTH:
        return
    seen.add(id(value))
    places: list[tuple[Any, Any, Any]] = [(_setter(value), name, item) for name, item in _attributes(value)]
    if isinstance(value, (dict, list)):
        put: Any = value.__setitem__
        places = [(put, key, item) for key, item in (value.items() if isinstance(value, dict) else enumerate(value))]
    for put, key, item in places:
        if isinstance(item, Tensor) and item.is_floating_point():
            put(key, item.to(dtype))
        else:
            _cast(item, dtype, seen, depth + 1)


def _setter(value: Any) -> Any:
    # Frozen dataclasses refuse their own.
    return lambda name, item: object.__setattr__(value, name, item)
