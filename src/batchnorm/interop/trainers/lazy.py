"""Callbacks that inherit from a class of a library which is imported when the first one is made."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any, ClassVar, Self

from batchnorm.interop.extras import needs


class Adapter:
    """A callback; `_bases` names the class of the library it stands in for, as "module:Class", in order of preference.

    An instance belongs to a class made of this one and the library's, so that its trainer takes it
    for one of its own.
    """

    _bases: ClassVar[tuple[str, ...]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance of the joined class."""
        return object.__new__(_joined(cls, cls._bases))

    def __reduce__(self) -> Any:
        # The joined class has no name to be imported by.
        return _again, (type(self).__mro__[1], self.__dict__)


def _again(cls: type[Adapter], state: dict[str, Any]) -> Adapter:
    made = Adapter.__new__(cls)
    made.__dict__.update(state)
    return made


@functools.cache
def _joined(cls: Any, bases: tuple[str, ...]) -> Any:
    # What the caller has imported comes first, then what is installed.
    loaded = [base for base in bases if sys.modules.get(base.partition(":")[0]) is not None]
    there = [base for base in bases if importlib.util.find_spec(base.partition(".")[0].partition(":")[0])]
    module, _, name = (*loaded, *there, *bases)[0].partition(":")
    base = getattr(needs(module, "this trainer's adapter"), name)
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__})
