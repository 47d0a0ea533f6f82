"""Everything but batch norm, put in train mode, moves the output by more than {GAP} of its size.

Dropout, stochastic depth. Recalibration does not close that gap. Where there is a metric, it is measured with dropout
on and off. A note: nothing is wrong with the statistics.
"""

from __future__ import annotations

from operator import attrgetter

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.models.tables import part_of

GAP = 0.05  # of the size of the output

TITLE = "the gap has another cause"
SEVERITY = "note"
FIX = "compare the modes with dropout off: model.eval() with batch norm layers alone in train()"
predicts = attrgetter("rest_effect")  # the metric with dropout off instead of on


def look(e: Evidence) -> Said:
    """The rest's part, beside batch norm's."""
    gap, ours = e.rest_gap or 0.0, e.statistics.moved or 0.0
    if gap > GAP and not (e.statistics.helps and ours > gap):
        names = ", ".join(e.random_modules[:3])
        more = f" and {len(e.random_modules) - 3} more" if len(e.random_modules) > 3 else ""
        what = f" ({names}{more})" if names else ""
        beside = "" if e.output_gap is None else f", batch norm {part_of(e.output_gap, '', 0)}"
        yield (
            "",
            f"what is random in train mode{what} moves the output by {part_of(gap, 'its size', 0)}{beside}: dropout, "
            "stochastic depth or the like make the gap, not the statistics",
        )


def broken() -> Example:
    """Dropout in front of the head."""
    return Example(network(dropout=0.5), batches())
