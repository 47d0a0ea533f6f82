"""One layer receives inputs that are not alike, in the calls of one forward or in batches of two kinds.

The calls' means lie apart by more than {BETWEEN_CALLS} of the variance; or the batches' means fall in two groups that
explain {TWO_GROUPS} of a spread {UNLIKE} times that of shuffled batches. One mean and variance fit neither. A
warning where the metric is better with the batch's statistics than with exact ones, or the output differs. Calls that
lie closer, as of a recurrent layer, are named where statistics of each call's own, tried on a copy, do better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.rules.examples import batches, settle
from batchnorm.diagnosis.rules.grounds import UNLIKE as UNLIKE
from batchnorm.diagnosis.rules.grounds import batch_is_better

if TYPE_CHECKING:
    from batchnorm.diagnosis.experiments.effect import Effect
    from batchnorm.diagnosis.model.evidence import Evidence

BETWEEN_CALLS = 0.1  # of the variance
TWO_GROUPS = 0.93  # of the spread of batch means; two halves of a normal distribution explain 0.64

CODES = {"model": "BN116"}
TITLE = "several distributions through one layer"
SEVERITY = "warning"
FIX = "give each its own statistics: one layer each, with shared weight and bias, or batchnorm.bank"


def predicts(e: Evidence) -> Effect:
    """Each call's own statistics instead of shared ones, or the batch's instead of exact ones."""
    return e.by_call if e.by_call is not None and e.by_call.measured else batch_is_better(e)


def look(e: Evidence) -> Said:
    """Calls of one forward, or two kinds of batches."""
    better = e.by_call is not None and e.by_call.measured and e.by_call.helps
    for layer in e.layers.values():
        if layer.frozen or layer.collected.values is None:
            continue
        between = layer.inputs.between_calls(layer.collected.values.var(1).cpu())
        if between > BETWEEN_CALLS:
            yield (
                layer.name,
                f"{between:.0%} of the variance lies between the calls of one forward: several distributions share "
                "one mean and variance, which fit none of them",
            )
        elif better and len(layer.by_call) > 1:
            yield (
                layer.name,
                f"the layer is called {len(layer.by_call)} times in a forward, and statistics of each call's own do "
                "better: several distributions share one mean and variance, which fit none of them",
            )
        elif layer.spread > UNLIKE and layer.inputs.two_groups() > TWO_GROUPS:
            yield (
                layer.name,
                f"the batches' means fall in two groups (which explain {layer.inputs.two_groups():.0%} of their "
                f"spread, {layer.spread:.0f} times that of shuffled batches): two kinds of data take turns",
            )


class _Siamese(nn.Module):
    """One layer for both halves of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        """The difference of the halves."""
        a, b = x.chunk(2)
        return self.norm(a) - self.norm(b)


def _halves(apart: float) -> Example:
    model = _Siamese()
    loader = []
    for x in batches():
        moved = x.clone()
        moved[len(x) // 2 :] += apart
        loader.append(moved)
    settle(model, loader)
    return Example(model, loader)


def broken() -> Example:
    """Halves four standard deviations apart."""
    return _halves(4.0)


def healthy() -> Example:
    """Halves that are alike."""
    return _halves(0.0)
