"""What a rule says: a stable code, a layer, numbers in a sentence, and a fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    code is stable (`BN104`), layer the path in the model ("" for the whole model), message the
    evidence in a sentence, fix one line of code or a command.
    """

    code: str
    severity: Severity
    layer: str
    message: str
    fix: str

    @property
    def page(self) -> str:
        """The finding's page in the documentation."""
        return f"findings.md#{self.code.lower()}"
