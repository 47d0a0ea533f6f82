"""What users of running statistics suffer from, a row a pain, and the test that shows each and what is done about it.

The row numbers are ids. `pain` registers a test; docs/pains.py makes the page of the documentation from them.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import nn

from batchnorm.layers import Batch
from gallery import CASES

ROWS = 52
STATES = ("prevented", "diagnosed", "repaired", "out of reach")
THEMES = (
    "averaging", "compile_export", "conversion", "extra_forwards", "frameworks", "freezing", "inputs", "lag",
    "momentum", "numerics", "other_weights", "ranks", "small_batches", "transforms",
)  # fmt: skip


class Pain(NamedTuple):
    """One row.

    peer: what torch (or the tool named) does today, as the test shows. here: one line of code. without: the
    names whose switching off makes the test fail, and fails_with the errors with which it then may. limit: what
    stays open, or was not run.
    """

    row: int
    symptom: str
    state: str
    peer: str
    here: str
    thread: str
    page: str
    without: tuple[str, ...]
    fails_with: tuple[type[BaseException], ...]
    limit: str
    test: Callable[..., None]


PAINS: dict[int, Pain] = {}


def pain(
    row: int,
    symptom: str,
    *,
    state: str,
    peer: str,
    here: str,
    thread: str,
    page: str,
    without: str | tuple[str, ...],
    fails_with: type[BaseException] = AssertionError,
    limit: str = "",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a test as the one of this row."""
    names = (without,) if isinstance(without, str) else without

    def register(test: Callable[..., None]) -> Callable[..., None]:
        # The same test again is its module imported under another name.
        if row in PAINS and PAINS[row].test.__qualname__ != test.__qualname__:
            raise ValueError(f"row {row} must have one test; it has {PAINS[row].test.__qualname__} too")
        errors = (AssertionError, fails_with)
        PAINS[row] = Pain(row, symptom, state, peer, here, thread, page, names, errors, limit, test)
        return test

    return register


def collected() -> list[Pain]:
    """All rows in order, whichever test files were imported before."""
    for theme in THEMES:
        importlib.import_module(f"tests.pains.test_{theme}")
    return [PAINS[row] for row in sorted(PAINS)]


@functools.cache
def outcome(case: str) -> Any:
    """What a script of the gallery showed: its report, and the metric before and after the fix."""
    return next(c for c in CASES if c.name == case).run()


# Switching a feature off ---------------------------------------------------------------------------------------


def _same(model: Any, *_: Any, **__: Any) -> Any:
    return model


@contextmanager
def _nothing(model: Any = None, *_: Any, **__: Any):
    yield model


def _undone(*_: Any, **__: Any) -> Any:
    return SimpleNamespace(undo=lambda: None, samples=0, residual={"": 1.0}, standard_error=0.0, layers={})


def _silent(*_: Any, **__: Any) -> Any:
    return SimpleNamespace(findings=[], ok=True, layers={}, evidence=None)


@contextmanager
def _watches_nothing(*_: Any, **__: Any):
    yield _silent()


def _stock(cls: type[nn.Module]) -> Callable[..., nn.Module]:
    choices = ("method", "extent", "estimator", "coupling", "inference", "policy")

    def build(*arguments: Any, **options: Any) -> nn.Module:
        return cls(*arguments, **{name: value for name, value in options.items() if name not in choices})

    return build


def _plain_mean(states: list[Any], *_: Any, **__: Any) -> Any:
    return {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}


def _left_as_it_is(model: Any, *_: Any, **__: Any) -> Any:
    return SimpleNamespace(model=model, left={"1": ""}, layers={})


def _rebinds(layer: Any, new: Any, ok: Any, skipped: Any) -> None:
    """Statistics that move to new memory, as an out-of-place step leaves them."""
    layer.running_mean, layer.running_var = new.mean.float(), new.var.float()
    layer.num_batches_tracked = layer.num_batches_tracked + ok


SWITCHES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("convert", "freeze", "unfreeze", "to_stock", "to_torch"), _same),
    **dict.fromkeys(("pause", "masked", "bank", "accumulate", "mode"), _nothing),
    **dict.fromkeys(("recalibrate", "adapt"), _undone),
    **dict.fromkeys(("diagnose", "inspect_checkpoint", "lint"), _silent),
    "average": _plain_mean,
    "translate": lambda *_, **__: SimpleNamespace(target=None),
    "sync_statistics": lambda *_, **__: None,
    "Sync": Batch,
    "verify": lambda *_, **__: SimpleNamespace(ok=True, failed=(), checks=()),
    "fold": lambda model, *_, **__: SimpleNamespace(
        model=model, left={"1": ""}, layers={"1": SimpleNamespace(went="")}
    ),
    "_commit": _rebinds,
    "watch": _watches_nothing,
    **{f"BatchNorm{rank}d": _stock(getattr(nn, f"BatchNorm{rank}d")) for rank in (1, 2, 3)},
}


def is_off(name: str) -> bool:
    """Whether `switch_off` holds this name now: other processes must be told."""
    return pkgutil.resolve_name(name) is SWITCHES[name.rpartition(".")[2]]


def switch_off(name: str, put: Callable[[Any, str, Any], None]) -> None:
    """Replace a name, such as "batchnorm.recalibrate", by something that does nothing; `put` is a setattr."""
    owner, _, attribute = name.rpartition(".")
    put(pkgutil.resolve_name(owner), attribute, SWITCHES[attribute])
