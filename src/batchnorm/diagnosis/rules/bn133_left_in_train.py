"""After `model.eval()` the layer is in train mode (a model's own `train()` leaves it there), or acts as if it were.

At inference it normalises with the batch, so that a result depends on the others in its batch, and each evaluation
moves the statistics. A warning where the stored statistics do better, on the evaluation data in the batches that
they come in, or change the output. With large shuffled batches the two agree: then it is a note.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from torch import Tensor, nn

from batchnorm.diagnosis.findings import Example, Said
from batchnorm.diagnosis.model.evidence import Evidence
from batchnorm.diagnosis.rules.examples import accuracy, labelled, network, norms
from batchnorm.diagnosis.rules.grounds import RECALIBRATE, by_statistics

TITLE = "in train mode after eval()"
SEVERITY = "warning"
FIX = "{code}{repair}"
predicts = attrgetter("served")  # the stored statistics instead of the batch's, as the model is used


def look(e: Evidence) -> Said:
    """Layers in train mode after eval()."""
    code = f"{RECALIBRATE}; " if by_statistics(e).helps else ""
    for name in e.layers:
        if name in e.left_in_train:
            yield (
                name,
                "the layer is in train mode after model.eval(): at inference it normalises with the batch, so that the "
                "result for a sample depends on the others, and each evaluation moves the statistics",
                {
                    "code": code,
                    "repair": "batchnorm.freeze(model)  # or let the model's train() reach its batch norm layers",
                },
            )
        elif name in e.uses_batch:
            kind = e.layers[name].kind
            yield (
                name,
                f"the forward of {kind} normalises with the batch in eval mode too: the result for a sample depends on "
                "the others, and the stored statistics are not used",
                {"code": "", "repair": f"# let the forward of {kind} use running_mean and running_var in eval mode"},
            )


class InTrainMode(nn.Module):
    """Its `train` keeps batch norm in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        """The body's output."""
        return self.body(x)

    def train(self, mode: bool = True) -> InTrainMode:
        """Batch norm stays in train mode."""
        super().train(mode)
        for layer in norms(self):
            layer.training = True
        return self


def _served(kept: bool) -> Example:
    model = InTrainMode()
    loader = labelled(model.body)
    pieces = [(x, y) for part, labels in loader for x, y in zip(part.split(2), labels.split(2), strict=True)]
    return Example(model if kept else model.body, loader, {"metric": accuracy, "eval_loader": pieces})


broken = partial(_served, True)  # served in batches of two
healthy = partial(_served, False)  # the same network, which eval() reaches
