"""What a rule is, and what it says: a stable code, a layer, numbers in a sentence, and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
Said = Iterator[tuple[str, str, str]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    code is stable (`BN104`), layer the path in the model ("" for the whole model, `file:line` for
    source code), message the evidence in a sentence, fix one line of code or a command.
    """

    code: str
    severity: Severity
    layer: str
    message: str
    fix: str

    @property
    def page(self) -> str:
        """The finding's section in the documentation."""
        return f"findings.md#{self.code.lower()}"


class Rule(NamedTuple):
    """A code, what it is called, how bad it is, and what it looks for: `(layer, message, fix)` each time."""

    code: str
    title: str
    severity: Severity
    look: Callable[[Any], Said]

    def apply(self, evidence: Any) -> Iterator[Finding]:
        """The findings of this rule on its evidence."""
        for layer, message, fix in self.look(evidence):
            yield Finding(self.code, self.severity, layer, message, fix)


def apply_rules(rules: Iterable[Rule], evidence: Any) -> list[Finding]:
    """All findings, the most severe first, causes before symptoms: in the order of the rules."""
    found = [finding for rule in rules for finding in rule.apply(evidence)]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))
