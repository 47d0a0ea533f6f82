"""The batches' means vary more than {UNLIKE} times as much as those of shuffled samples, and more than chance allows.

Sorted data, one class, one scene a batch. A note: validation loaders often are like that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules import bn116_distributions
from batchnorm.diagnosis.rules.examples import data, network, settle
from batchnorm.diagnosis.rules.grounds import UNLIKE as UNLIKE
from batchnorm.diagnosis.rules.grounds import first_unlike

if TYPE_CHECKING:
    from batchnorm.diagnosis.model.evidence import Evidence

CODES = {"model": "BN117"}
TITLE = "batches are not alike"
SEVERITY = "note"
FIX = "shuffle the loader; if batches are like that in training, train with renorm or freeze towards the end"


def look(e: Evidence) -> Said:
    """Unless they fall in two groups, which is BN116."""
    found = first_unlike(e)
    if found is not None and next(bn116_distributions.look(e), None) is None:
        layer, spread = found
        yield (
            layer.name,
            f"the batches' means vary {spread:.0f} times as much as those of shuffled batches: each batch is of its "
            "own kind (sorted data, one class, one patient, one scene)",
        )


def _stretched(ordered: bool) -> Example:
    x = data() * torch.tensor([6.0] + [1.0] * 7)
    model = network(hidden=1)
    settle(model, list(x.split(32)))
    return Example(model, list((x[x[:, 0].argsort()] if ordered else x).split(32)))


def broken() -> Example:
    """Sorted by one feature."""
    return _stretched(True)


def healthy() -> Example:
    """As they come."""
    return _stretched(False)
