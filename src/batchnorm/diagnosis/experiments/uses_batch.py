"""Layers with a forward of their own that normalise with the batch in eval mode too."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.conditions import Layers
from batchnorm.diagnosis.experiments.data import Data
from batchnorm.diagnosis.experiments.laboratory import Laboratory
from batchnorm.models.outputs import first_output
from batchnorm.models.state import evaluating

SAMPLES = 16  # of a layer's input
APART = 0.01  # of the output's size


def using_batch(lab: Laboratory, data: Data, layers: Layers) -> set[str]:
    """Those whose output for a sample is another without the other samples, and the same when it is asked again."""
    received: dict[str, Tensor] = {}

    def look(name: str, x: Tensor, weight: Tensor | None) -> None:
        if len(x) > 1 and name not in received:
            received[name] = x[:SAMPLES].detach().clone()

    with evaluating(lab.model):
        index, batch = next(iter(data))
        with lab.hooks(layers, look):
            lab.forward(data, batch, index)
        return {name for name, x in received.items() if _depends(layers[name], x)}


def _depends(layer: torch.nn.Module, x: Tensor) -> bool:
    try:
        whole, again, half = (first_output(layer(part)) for part in (x, x, x[: len(x) // 2]))
    except (ValueError, RuntimeError, TypeError):  # it takes its input in another form
        return False
    if whole is None or half is None or len(whole) != len(x) or not torch.equal(whole, again):  # pyright: ignore
        return False
    size = whole.abs().mean()
    return bool((half - whole[: len(half)]).abs().mean() > APART * size)
