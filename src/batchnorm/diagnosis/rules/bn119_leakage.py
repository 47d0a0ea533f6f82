"""Each batch is of one kind (BN117), and the metric is better with the batch's statistics than with exact ones.

Beyond noise and by more than {PERSISTS} of the distance to guessing. The network reads from its batch what kind it is,
and recalibration does not close the gap. Which way the metric is better is learnt from outputs held against other
samples' labels, or given as higher_is_better.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules import bn116_distributions
from batchnorm.diagnosis.rules.examples import accuracy, settle
from batchnorm.diagnosis.rules.grounds import batch_is_better, first_unlike

PERSISTS = 0.05  # of the distance to guessing

TITLE = "samples of a batch inform each other"
SEVERITY = "warning"
FIX = (
    "no statistics repair it, the weights need training on: a fifth of the steps with batchnorm.freeze(model), or "
    "with shuffled batches, or batchnorm.convert(model, 'renorm')"
)
predicts = batch_is_better


def look(e: Evidence) -> Said:
    """Right statistics do not give what the batch's give."""
    effect = e.by_batch
    if first_unlike(e) is None or next(bn116_distributions.look(e), None) is not None:
        return
    # Without a metric nobody can say which of the two is right: a sorted validation loader differs as much.
    if effect.gain is not None and effect.helps and effect.gain > PERSISTS * effect.scale:
        yield (
            "",
            f"recalibration does not close the gap: the metric is {effect.after:.3g} with the batch's statistics and "
            f"{effect.before:.3g} with exact ones. The network was trained on batches of one kind and reads from their "
            "statistics what kind it is",
        )


class _ReadsItsBatch(nn.Module):
    """Class 1 where the sample is above its batch's mean: an answer that only the batch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Two scores."""
        z = self.norm(x)
        return torch.cat([-z, z], 1)


def _sorted(by_batch: bool) -> Example:
    x = torch.randn(640, 1, generator=torch.Generator().manual_seed(0))
    parts = [part + 8 * (index % 10 - 4.5) for index, part in enumerate(x.split(32))]
    whole = torch.cat(parts).mean()
    loader = [(part, ((part - (part.mean() if by_batch else whole))[:, 0] > 0).long()) for part in parts]
    model = _ReadsItsBatch()
    settle(model, [part for part, _ in loader])
    return Example(model, loader, {"metric": accuracy})


broken = partial(_sorted, True)  # the label depends on the batch
healthy = partial(_sorted, False)  # the label depends on the sample
