"""What the adapters share: options checked when they are given, not an epoch later, and the processes of a run."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from typing import Any

import torch.distributed as dist

from batchnorm.arguments import number, or_none, some_names
from batchnorm.errors import BatchNormError, check
from batchnorm.models import recalibrate

UNTIL = or_none(number("None or a positive number of standard deviations", lambda v: v > 0))
_FILLED_IN = {"model", "loader", "process_group"}


def check_options(options: Iterable[str]) -> None:
    """Only arguments of `recalibrate` that the adapter does not fill in itself."""
    known = sorted(set(inspect.signature(recalibrate).parameters) - _FILLED_IN)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise BatchNormError(f"options must be arguments of recalibrate: {', '.join(known)}; not {unknown[0]!r}")


def check_moments(at: Collection[str] | str, legal: tuple[str, ...]) -> frozenset[str]:
    """Some of the legal words; one may come alone."""
    some_names("at", [at] if isinstance(at, str) else at)
    words = frozenset([at] if isinstance(at, str) else at)
    check(bool(words) and words <= set(legal), "at", f"some of {', '.join(map(repr, legal))}", repr(at))
    return words


def everybody() -> Any:
    """The group of all processes, or None where there is one."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist.group.WORLD if several else None
