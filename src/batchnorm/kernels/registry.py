"""Which backend serves a call: a table of implementations of the four passes, best first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from batchnorm.arguments import told
from batchnorm.errors import ArgumentError, BatchNormError
from batchnorm.kernels import reference
from batchnorm.kernels.shapes import RawMoments


class Passes(NamedTuple):
    """One implementation of the four passes; `serves(x)` says whether it may run on this tensor.

    The signatures are those of `batchnorm.kernels.reference`.
    """

    name: str
    serves: Callable[[Tensor], bool]
    reduce: Callable[..., RawMoments]
    apply: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    backward_reduce: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    backward_apply: Callable[..., Tensor]


REFERENCE = Passes(
    "reference", lambda x: True, reference.reduce, reference.apply, reference.backward_reduce, reference.backward_apply
)
_backends: list[Passes] = [REFERENCE]


def register(passes: Passes) -> None:
    """Put a backend in front of those registered so far; the reference stays last."""
    if not isinstance(passes, Passes):
        raise ArgumentError(f"passes must be a batchnorm.kernels.Passes; it was {told(passes)}")
    if any(known.name == passes.name for known in _backends):
        raise BatchNormError(f"passes.name must be new; {passes.name!r} is registered already")
    _backends.insert(0, passes)


def select(x: Tensor) -> Passes:
    """The first registered backend that serves this tensor."""
    for passes in _backends:
        if passes.serves(x):
            return passes
    return REFERENCE
