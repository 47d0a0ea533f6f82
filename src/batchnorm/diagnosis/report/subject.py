"""What a report is about: a model, a checkpoint, a training run or source code, each with the same few answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Table(NamedTuple):
    """A table in a report: its title, a header and rows of text, and what its columns mean."""

    title: str
    header: list[str]
    rows: list[list[str]]
    caption: str = ""


class Timeline(NamedTuple):
    """Lines over steps: a name each, and points `(step, value)`."""

    title: str
    caption: str
    lines: dict[str, list[tuple[float, float]]]


class Subject(Protocol):
    """What `Report` asks of the evidence it presents."""

    kind: str  # model, checkpoint, run or source
    fine: str  # the verdict where nothing was found
    evidence: Any

    def __init__(self, evidence: Any) -> None:
        self.evidence = evidence

    @property
    def layers(self) -> Mapping[str, Any]:
        """What is known of each layer, by path."""
        return self.evidence.layers

    @property
    def measured(self) -> str:
        """On what the verdict rests, in a few words."""
        ...

    def tables(self) -> list[Table]:
        """What to print before the findings."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """What stands in the JSON beside verdict and findings."""
        ...

    def page(self) -> dict[str, Any]:
        """What the HTML page draws; see `page.html`."""
        ...
