"""In a training step, run and rolled back, the statistics moved again in the backward pass.

Activation checkpointing recomputes the forward.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import batches, network
from batchnorm.diagnosis.rules.grounds import by_statistics

TITLE = "double counting"
SEVERITY = "warning"
FIX = "batchnorm.convert(model)"
predicts = by_statistics


def look(e: Evidence) -> Said:
    """Updates during the backward pass."""
    for name, count in (e.step.updates_in_backward if e.step else {}).items():
        if count:
            yield (
                name,
                f"the statistics moved {count} more time{'s' * (count > 1)} in the backward pass: activation "
                "checkpointing runs the forward again",
            )


class _Checkpointed(nn.Module):
    """Runs its body again in the backward pass."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """All but the first layer again."""
        return checkpoint(self.body[1:], self.body[0](x), use_reentrant=False)


def broken() -> Example:
    """Layers of torch inside a checkpoint."""
    return Example(_Checkpointed(network()), batches())
