"""What a class says of its own methods does not hold for those that a subclass writes anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def forget(cls: type, says: Mapping[str, tuple[Any, tuple[str, ...]]]) -> None:
    """Set an attribute back to what holds of any class, where a method that it speaks of is defined after it."""

    def depth(name: str) -> int:
        return next(at for at, parent in enumerate(cls.__mro__) if name in parent.__dict__)

    for name, (anyones, methods) in says.items():
        if min(map(depth, methods)) < depth(name):
            setattr(cls, name, anyones)
