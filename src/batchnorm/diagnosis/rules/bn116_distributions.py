"""One layer receives inputs that are not alike, in the calls of one forward or in batches of two kinds.

The calls' means lie apart by more than {BETWEEN_CALLS} of the variance; or the batches' means fall in two groups that
explain {TWO_GROUPS} of a spread {UNLIKE} times that of shuffled batches. One mean and variance fit neither. A
warning where the metric is better with the batch's statistics than with exact ones, or the output differs. Calls that
lie closer, as of a recurrent layer, are named where statistics of each call's own, tried on a copy, do better.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from batchnorm.diagnosis.experiments.effect import Effect
from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, settle
from batchnorm.diagnosis.rules.grounds import TWO_GROUPS as TWO_GROUPS
from batchnorm.diagnosis.rules.grounds import UNLIKE as UNLIKE
from batchnorm.diagnosis.rules.grounds import batch_is_better

BETWEEN_CALLS = 0.1  # of the variance

# As they were tried: what each call receives with the batch's statistics.
BY_CALL = 'batchnorm.recalibrate(batchnorm.models.separate_calls(model, loader), loader, upstream="batch")'
BY_BATCH = (
    "per-domain statistics: batchnorm.convert(model), and with batchnorm.bank(model, domain) around the batches of "
    "each kind"
)

TITLE = "several distributions through one layer"
SEVERITY = "warning"
FIX = "{how}"


def predicts(e: Evidence) -> Effect:
    """Statistics of each call's or each kind's own instead of shared ones, or the batch's instead of exact ones."""
    tried = [found for found in (e.by_call, e.by_domain) if found is not None and found.measured]
    return tried[0] if tried else batch_is_better(e)


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
                {"how": BY_CALL},
            )
        elif better and len(layer.by_call) > 1:
            yield (
                layer.name,
                f"the layer is called {len(layer.by_call)} times in a forward, and statistics of each call's own do "
                "better: several distributions share one mean and variance, which fit none of them",
                {"how": BY_CALL},
            )
        elif e.domains and layer.spread > UNLIKE and (explained := layer.inputs.two_groups()[0]) > TWO_GROUPS:
            yield (
                layer.name,
                f"the batches' means fall in two groups (which explain {explained:.0%} of their "
                f"spread, {layer.spread:.0f} times that of shuffled batches): two kinds of data take turns",
                {"how": BY_BATCH},
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


broken = partial(_halves, 4.0)  # halves four standard deviations apart
healthy = partial(_halves, 0.0)  # halves that are alike
