"""Textbook spellings of mistakes, and sound code that looks like them, for every kind in small programs."""

from tests.diagnosis.source.textbook import (
    constructors,
    entry_points,
    exports_and_constants,
    followers,
    held,
    helpers,
    own_modes,
    settings,
    states,
    trained_in_eval,
    unknown_links,
    values,
)

KINDS = (
    constructors,
    entry_points,
    exports_and_constants,
    followers,
    held,
    helpers,
    own_modes,
    settings,
    states,
    trained_in_eval,
    unknown_links,
    values,
)
