"""Fewer than {FEW} independent values a channel in some batch: its variance is uncertain by 35 % and more.

Neighbouring positions of an image are alike and count as fewer: the variance between samples says as how many. The
biased and the unbiased variance differ by n / (n - 1). A warning where the metric is worse with the batch's
statistics than with exact ones, or the output differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import data, network
from batchnorm.diagnosis.rules.grounds import batch_is_worse

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

FEW = 16  # below, the batch variance is off by 35 % or more, sqrt(2 / n)

CODES = {"model": "BN114"}
TITLE = "too few values per channel"
SEVERITY = "warning"
FIX = "use larger batches, or batchnorm.freeze(model)"
predicts = batch_is_worse


def look(e: Evidence) -> Said:
    """The fewest of any batch."""
    for layer in e.layers.values():
        n = layer.collected.effective_values
        if n < FEW and not layer.frozen and layer.reached:
            counted = layer.collected.fewest_values
            alike = "" if n > 0.9 * counted else f", as informative as {n:.0f} independent ones"
            yield (
                layer.name,
                f"a batch has {counted:.0f} values per channel{alike}: its variance is uncertain by "
                f"{(2 / max(n - 1, 1)) ** 0.5:.0%}",
            )


def broken() -> Example:
    """Batches of four."""
    return Example(network(), list(data().split(4)))


def healthy() -> Example:
    """Batches of 32."""
    return Example(network(), list(data().split(32)))
