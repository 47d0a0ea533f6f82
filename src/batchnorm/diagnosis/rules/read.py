"""Reads the rules of this folder from their files, a `Rule` for each side that a file speaks of.

A file `bn104_lag.py` holds

    docstring           its page; `{NAME}` is filled in from the file's own constants
    CODES               a code for each side: {"model": "BN104", "run": "BN310"}
    TITLE, SEVERITY     once; a side is named behind the title
    FIX                 one line, or {side: line}; `{layer}` is how code reaches the layer, other
                        placeholders come from look. What can be executed is Python (in a checkpoint a
                        command), the rest a comment behind `#`
    look(evidence)      yields (layer, message) or (layer, message, values)
    predicts(evidence)  optional: the `Effect` that must be seen if this is the cause
    broken, healthy     examples: the rule fires on the one and is silent on the other, on every side
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from batchnorm.diagnosis.findings import Rule, Side

WHERE: dict[str, str] = {"model": "", "checkpoint": " in the file", "run": " in the run"}
# Causes before symptoms, then notes. A file that is not named here comes last, by its name.
CAUSES_FIRST = [
    *(
        "momentum_outside",
        "nonfinite",
        "negative",
        "trained_with_stored",
        "frozen_unlike",
        "initial",
        "one_value",
        "tracking_off",
    ),
    *("eps", "own_class", "momentum_zero", "keras_momentum", "frozen_moves", "counted_twice", "half", "sync_cpu"),
    *("no_statistics", "left_in_train", "padding", "distributions", "leakage", "evaluation_data", "class_prior"),
    *("dropout", "too_few_steps", "few_values", "lag", "small_errors", "counters", "other_cause", "unlike_batches"),
    *("constant", "far_mean", "large_gain", "switched_off", "unreached"),
]


def title_of(module: ModuleType, side: str) -> str:
    """The title with the side behind it."""
    titles: Any = module.TITLE
    return titles[side] if isinstance(titles, dict) else titles + WHERE[side]


def page_of(module: ModuleType) -> str:
    """The docstring with the thresholds filled in."""
    constants = {name: _shown(value) for name, value in vars(module).items() if name.isupper()}
    return (module.__doc__ or "").strip().format(**constants)


def _shown(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def _rules(module: ModuleType) -> list[Rule]:
    fixes: Any = module.FIX
    return [
        Rule(
            code,
            title_of(module, side),
            module.SEVERITY[side] if isinstance(module.SEVERITY, dict) else module.SEVERITY,
            module.look,
            fixes[side] if isinstance(fixes, dict) else fixes,
            side,
            page_of(module),
            getattr(module, "predicts", None),
            module.broken,
            module.healthy,
        )
        for side, code in module.CODES.items()
    ]


def _place(path: Path) -> tuple[int, str]:
    name = path.stem.split("_", 1)[1]
    return (CAUSES_FIRST.index(name) if name in CAUSES_FIRST else len(CAUSES_FIRST)), name


def _files() -> list[ModuleType]:
    paths = sorted(Path(__file__).parent.glob("bn[0-9]*_*.py"), key=_place)
    return [import_module(f"{__package__}.{path.stem}") for path in paths]


FILES = _files()
EVERY = [rule for module in FILES for rule in _rules(module)]


def of_side(side: Side) -> tuple[Rule, ...]:
    """The rules of one side, causes before symptoms."""
    return tuple(rule for rule in EVERY if rule.side == side)


MODEL, CHECKPOINT, RUN = of_side("model"), of_side("checkpoint"), of_side("run")
