"""What a rule is, and what it says: a stable code, a layer, numbers in a sentence, a fix and what the fix did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
Said = Iterator[Any]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    code is stable (`BN104`), layer the path in the model ("" for the whole model, `file:line` for
    source code), message the evidence in a sentence, fix one line of code or a command.

    tried says what the fix did when it was executed on a copy, or what was measured instead; share is
    the part of the gap between stored and exact statistics that this cause explains alone, where
    several compete.
    """

    code: str
    severity: Severity
    layer: str
    message: str
    fix: str
    tried: str = ""
    share: float | None = None

    @property
    def page(self) -> str:
        """The finding's section in the documentation."""
        return f"findings.md#{self.code.lower()}"


class Example(NamedTuple):
    """A model and its data, for the test of a rule: `diagnose(model, loader, **options)`."""

    model: Any
    loader: Any
    options: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Rule:
    """A code, what it is called, how bad it is at most, and what it looks for.

    look yields `(layer, message)` each time, or `(layer, message, values)` with what the placeholders
    of fix stand for (a rule without a fix of its own yields the fix itself).

    predicts says what else must be seen if this is the cause: it takes the evidence and gives an
    `Effect`, measured on a copy. A finding whose effect does no harm is a note. Without it the rule
    rests on what it sees.

    page is its section in the documentation; broken and healthy build its test.
    """

    code: str
    title: str
    severity: Severity
    look: Callable[[Any], Said]
    fix: str = ""
    page: str = ""
    predicts: Callable[[Any], Any] | None = None
    broken: Callable[[], Example] | None = None
    healthy: Callable[[], Example] | None = None

    def apply(self, evidence: Any) -> Iterator[Finding]:
        """The findings of this rule on its evidence."""
        for layer, message, *rest in self.look(evidence):
            values = rest[0] if rest else {}
            fix = values if isinstance(values, str) else _filled(self.fix, layer, values)
            yield Finding(self.code, self.severity, layer, message, fix)


def of_each(look_at: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Said]:
    """A look at every layer by itself: what look_at yields of it, a message or `(message, values)`, with its name."""

    def look(evidence: Any) -> Said:
        for layer in evidence.layers.values():
            for said in look_at(layer):
                yield (layer.name, said) if isinstance(said, str) else (layer.name, *said)

    return look


def _filled(fix: str, layer: str, values: dict[str, Any]) -> str:
    """A fix with its placeholders filled in; `{layer}` is how code reaches the layer."""
    reached = f'model.get_submodule("{layer}")' if layer else "model"
    return fix.format(**{"layer": reached, "name": layer or "(root)", **values}) if "{" in fix else fix


def apply_rules(rules: Iterable[Rule], evidence: Any) -> list[Finding]:
    """All findings, the most severe first, causes before symptoms: in the order of the rules."""
    return by_severity(finding for rule in rules for finding in rule.apply(evidence))


def by_severity(found: Iterable[Finding]) -> list[Finding]:
    """The most severe first."""
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))
