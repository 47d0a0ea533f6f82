"""What contexts set on layers, held beside the layers: a copy made inside a context starts outside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

ABSENT: Any = object()
_REDUCE = "__reduce_ex__"


@dataclass
class _Held:
    """One attribute of one layer: what it was before the first context, and what those that are open set."""

    before: Any
    values: dict[object, Any] = field(default_factory=dict)


_held: WeakKeyDictionary[nn.Module, dict[str, _Held]] = WeakKeyDictionary()
_lock = threading.Lock()


def hold(layer: nn.Module, attribute: str, value: Any) -> Callable[[], None]:
    """Set an attribute until what is returned is called; contexts may nest, overlap and end in any order."""
    token = object()
    with _lock:
        of_layer = _held.setdefault(layer, {})
        layer.__dict__.setdefault(_REDUCE, _Outside(layer))
        if attribute not in of_layer:
            of_layer[attribute] = _Held(layer.__dict__.get(attribute, ABSENT))
        of_layer[attribute].values[token] = value
        setattr(layer, attribute, value)

    def release() -> None:
        with _lock:
            held = _held.get(layer, {}).get(attribute)
            if held is None or token not in held.values:
                return
            del held.values[token]
            if held.values:
                setattr(layer, attribute, next(reversed(held.values.values())))
                return
            _put(layer.__dict__, attribute, held.before)
            del _held[layer][attribute]
            if not _held[layer]:
                del _held[layer]
                layer.__dict__.pop(_REDUCE, None)

    return release


def outside(layer: nn.Module) -> dict[str, Any]:
    """What the attributes that contexts hold were before them; `ABSENT` where the class's default stood."""
    with _lock:
        return {name: held.before for name, held in _held.get(layer, {}).items()}


def without_contexts(layer: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A layer's attributes, for a copy or a pickle, as they are outside every context."""
    state = dict(state)
    state.pop(_REDUCE, None)
    for name, value in outside(layer).items():
        _put(state, name, value)
    return state


def _put(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value


class _Outside:
    """`__reduce_ex__` of a layer that a context holds: deepcopy, copy and pickle ask it what the layer is made of.

    Torch's own layers know nothing of contexts, and an attribute of the instance is all they can be told.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, protocol: Any) -> tuple[Any, ...]:
        """What the class says, without what contexts set."""
        reduced: list[Any] = list(type(self.layer).__reduce_ex__(self.layer, protocol))
        if isinstance(reduced[2], dict):
            reduced[2] = without_contexts(self.layer, reduced[2])
        return tuple(reduced)
