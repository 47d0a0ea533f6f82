"""What contexts set on layers, held beside the layers: a copy made inside a context starts outside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

ABSENT: Any = object()


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

    return release


def outside(layer: nn.Module) -> dict[str, Any]:
    """What the attributes that contexts hold were before them; `ABSENT` where the class's default stood."""
    with _lock:
        return {name: held.before for name, held in _held.get(layer, {}).items()}


def without_contexts(layer: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """A layer's attributes, for a copy or a pickle, as they are outside every context."""
    state = dict(state)
    for name, value in outside(layer).items():
        _put(state, name, value)
    return state


def _put(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value


class Leaving:
    """A forward pre-hook on a layer that cannot be told how to copy itself: a copy puts itself right when it runs."""

    def __init__(self, before: dict[str, Any]) -> None:
        self.before = before

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Leave the context that the original is in."""
        if torch.compiler.is_compiling():
            return
        if not any(name in outside(module) for name in self.before):
            for name, value in self.before.items():
                module.__dict__[name] = value
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is self]:
                del module._forward_pre_hooks[key]


def hold_stock(layer: nn.Module, attribute: str, value: Any) -> Callable[[], None]:
    """As `hold`, for torch's own layers, whose copies and pickles are made without us."""
    before = outside(layer).get(attribute, ABSENT)
    before = getattr(layer, attribute) if before is ABSENT else before
    release = hold(layer, attribute, value)
    hook = layer.register_forward_pre_hook(Leaving({attribute: before}))

    def done() -> None:
        hook.remove()
        release()

    return done
