"""Pruning: the statistics belong to the dense network; measured anew, the pruned one is better than it looks.

python examples/pruning.py [--quick]
"""

# %%
import copy

import torch
from torch import nn

import batchnorm
from example_tools import error, loader, network, quick, show, train

# %% [markdown]
# The smallest weights of every convolution but the first are set to zero; nothing is trained afterwards.


# %%
@torch.no_grad()
def pruned(model: nn.Module, part: float) -> nn.Module:
    """A copy without this part of the weights."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            weight = layer.weight.abs()
            layer.weight[weight < weight.flatten().quantile(part)] = 0
    return model


# %%
def run(quick: bool = False) -> dict[str, float]:
    """Percent wrong by the part pruned, before and after recalibration."""
    dense = train(network(), 60 if quick else 400, rate=3e-3)
    rows, figures = {"dense": error(dense)}, {}
    for part in (0.4, 0.6, 0.7, 0.8):
        model = pruned(dense, part)
        before = error(model)
        batchnorm.recalibrate(model, loader(), progress=False)
        figures[f"stored {part}"], figures[f"recalibrated {part}"] = before, error(model)
        rows[f"{part:.0%} pruned"] = before
        rows[f"{part:.0%} pruned, recalibrated"] = figures[f"recalibrated {part}"]
    show("Held-out digits", rows)
    return {"dense": rows["dense"], **figures}


# %%
if __name__ == "__main__":
    run(quick())
