"""Fewer than {FEW} independent values a channel in some batch: its variance is uncertain by 35 % and more.

Neighbouring positions of an image are alike and count as fewer: the variance between samples says as how many. The
biased and the unbiased variance differ by n / (n - 1). A warning where the metric is worse with the batch's statistics
than with exact ones, or without a metric the output differs, and recalibrating helps as well: the stored statistics are
an average of noisy ones. With {INFINITE} values or fewer the second is not required: 1 / (batch variance) has no
finite mean, so training normalises differently from inference whatever is stored.
"""

from __future__ import annotations

from functools import partial

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import data, network
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, batch_is_worse, by_statistics

INFINITE = 3  # the mean of 1 / chi2 with 2 degrees of freedom
FEW = 16  # below, the batch variance is off by 35 % or more, sqrt(2 / n)

TITLE = "too few values per channel"
SEVERITY = "warning"
FIX = "{code}train on with batchnorm.freeze(model), or use larger batches"


def predicts(e: Evidence) -> Effect:
    """The batch's statistics are worse, and so are the stored ones, unless batches are too small for any average."""
    worse = batch_is_worse(e)
    fewest = min((layer.collected.fewest_values for layer in e.layers.values() if layer.reached), default=FEW)
    return worse if fewest <= INFINITE or not worse.helps else by_statistics(e)


def look(e: Evidence) -> Said:
    """The fewest of any batch."""
    code = f"{RECALIBRATE}  # and before training on, " if by_statistics(e).helps else ""
    for layer in e.layers.values():
        n = layer.collected.effective_values
        if n < FEW and not layer.frozen and layer.reached:
            counted = layer.collected.fewest_values
            alike = "" if n > 0.9 * counted else f", as informative as {n:.0f} independent ones"
            yield (
                layer.name,
                f"a batch has {counted:.0f} values per channel{alike}: its variance is uncertain by "
                f"{(2 / max(n - 1, 1)) ** 0.5:.0%}",
                {"code": code},
            )


def _in_batches_of(size: int) -> Example:
    return Example(network(), list(data().split(size)))


broken = partial(_in_batches_of, 4)
healthy = partial(_in_batches_of, 32)
