"""Reads the rules of this folder from their files.

A file `bn104_lag.py` holds the rule BN104:

    docstring           its page; `{NAME}` is filled in from the file's own constants
    TITLE, SEVERITY     once
    FIX                 one line; `{layer}` is how code reaches the layer, other placeholders come from look.
                        What can be executed is Python, the rest a comment behind `#`
    look(evidence)      yields (layer, message) or (layer, message, values)
    look_at(layer)      instead of look: yields a message, or (message, values), of this one
    predicts(evidence)  optional: the `Effect` that must be seen if this is the cause
    broken, healthy     examples: the rule fires on the one and is silent on the other, by default a network without
                        faults
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from batchnorm.diagnosis.findings import Rule, of_each
from batchnorm.diagnosis.rules import examples

# Causes before symptoms, then notes. A file that is not named here comes last, by its name.
CAUSES_FIRST = [
    "momentum_outside", "nonfinite", "negative", "trained_with_stored", "frozen_unlike", "initial", "one_value",
    "tracking_off", "eps", "own_class", "momentum_zero", "keras_momentum", "frozen_moves", "counted_twice", "half",
    "sync_cpu", "no_statistics", "left_in_train", "padding", "distributions", "leakage", "evaluation_data",
    "class_prior", "dropout", "too_few_steps", "few_values", "lag", "small_errors", "counters", "other_cause",
    "unlike_batches", "constant", "far_mean", "large_gain", "switched_off", "unreached",
]  # fmt: skip


def page_of(module: ModuleType) -> str:
    """The docstring with the thresholds filled in."""
    constants = {name: _shown(value) for name, value in vars(module).items() if name.isupper()}
    return (module.__doc__ or "").strip().format(**constants)


def _shown(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _rule(path: Path) -> Rule:
    module: Any = import_module(f"{__package__}.{path.stem}")
    return Rule(
        path.stem.split("_")[0].upper(),
        module.TITLE,
        module.SEVERITY,
        of_each(module.look_at) if hasattr(module, "look_at") else module.look,
        module.FIX,
        page_of(module),
        getattr(module, "predicts", None),
        module.broken,
        getattr(module, "healthy", examples.healthy),
    )


def _place(path: Path) -> tuple[int, str]:
    name = path.stem.split("_", 1)[1]
    return (CAUSES_FIRST.index(name) if name in CAUSES_FIRST else len(CAUSES_FIRST)), name


MODEL = tuple(map(_rule, sorted(Path(__file__).parent.glob("bn[0-9]*_*.py"), key=_place)))
