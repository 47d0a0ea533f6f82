"""Textbook spellings of mistakes, and sound code that looks like them, for every kind in small programs."""

from importlib import import_module

NAMES = (
    "constructors",
    "entry_points",
    "exports_and_constants",
    "followers",
    "frozen",
    "held",
    "helpers",
    "own_modes",
    "settings",
    "states",
    "steered",
    "trained_in_eval",
    "unknown_links",
    "values",
)
KINDS = tuple(import_module(f"{__name__}.{name}") for name in NAMES)
