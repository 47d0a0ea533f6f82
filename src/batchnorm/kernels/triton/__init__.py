"""The passes and the whole step on a CUDA device, in Triton: the third speaker of the one rule, after C++ and torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from batchnorm.kernels.registry import Passes
from batchnorm.kernels.triton.serving import SWITCHES, declined, enable, interpret, interpreted, serves, state

__all__ = ["PASSES", "SWITCHES", "calls", "declined", "enable", "interpret", "interpreted", "serves", "state"]


def calls() -> Any:
    """The whole steps; this imports Triton."""
    from batchnorm.kernels.triton import whole

    return whole


def _reduce(*given: Any) -> Any:
    return _passes().reduce(*given)


def _apply(*given: Any) -> Tensor:
    return _passes().apply(*given)


def _backward_reduce(*given: Any) -> Any:
    return _passes().backward_reduce(*given)


def _backward_apply(*given: Any) -> Tensor:
    return _passes().backward_apply(*given)


def _passes() -> Any:
    from batchnorm.kernels.triton import passes

    return passes


PASSES = Passes("triton", serves, _reduce, _apply, _backward_reduce, _backward_apply)
