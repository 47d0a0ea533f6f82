"""Right calls, with the types that they have for a user. Type checkers read this file; nothing runs it."""

from typing import assert_type

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.diagnosis import Report
from batchnorm.layers import EMA, Ghost, Masked, Mixture, Policy, Recipe, Renorm, Sync
from batchnorm.models import Adaptation, Folding, Recalibration


class Network(nn.Module):
    """A user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = batchnorm.BatchNorm2d(8, method="renorm", momentum=0.01)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Plain."""
        return self.head(self.norm(x).mean((2, 3)))


model = Network()
loader = [torch.randn(8, 8, 4, 4)]
mask = torch.ones(8, 4, 4, dtype=torch.bool)

# The caller's own type comes back.
assert_type(batchnorm.convert(model), Network)
assert_type(batchnorm.convert(model, "debiased", policy=Policy(too_few="population")), Network)
assert_type(batchnorm.freeze(model, affine=True), Network)
assert_type(batchnorm.unfreeze(model), Network)
assert_type(batchnorm.fuse_activations(model), Network)
assert_type(batchnorm.to_stock(model, bank=None), Network)
assert_type(batchnorm.models.unadapt(model), Network)
assert_type(batchnorm.models.center_weights(model), Network)
assert_type(batchnorm.interop.to_sync(model), Network)
assert_type(batchnorm.adapt(model, loader), Adaptation[Network])
assert_type(batchnorm.adapt(model, mode="batch").model, Network)
# But for a layer alone, which becomes another class.
assert_type(batchnorm.to_stock(model.norm), nn.Module)
with batchnorm.pause(model) as same:
    assert_type(same, Network)
with batchnorm.masked(model, mask) as same:
    assert_type(same, Network)
with batchnorm.bank(model, "night") as same:
    assert_type(same, Network)
with batchnorm.accumulate(model, renorm=True) as same:
    assert_type(same, Network)
with batchnorm.models.mode(model, train=False) as same:
    assert_type(same, Network)

# Results.
assert_type(batchnorm.recalibrate(model, loader, upstream="batch", until=0.01), Recalibration)
assert_type(batchnorm.diagnose(model, iter(loader), lambda output, batch: float(output.mean())), Report)
assert_type(batchnorm.inspect_checkpoint("model.pt"), Report)
assert_type(batchnorm.lint(["a.py", "b.py"], select=["BN401"]).ok, bool)
assert_type(batchnorm.fold(model, loader[0], rest="keep"), Folding)
assert_type(batchnorm.layers.recipe_for("ghost", extent=Ghost(16)), Recipe)
assert_type(batchnorm.__version__, str)
for name in batchnorm.methods():
    batchnorm.convert(model, name)

# Layers and choices.
batchnorm.BatchNorm1d(8, 1e-5, None, False, True, "cpu", torch.float64)
batchnorm.BatchNorm2d(8, momentum=lambda step: 1 / step, activation="leaky_relu", inplace=True)
batchnorm.BatchNorm3d(8, extent=Sync(Ghost(4)), estimator=EMA(0.9, correction=0), coupling=Renorm(schedule="paper"))
batchnorm.LazyBatchNorm2d(inference=Mixture(prior=16, per="batch"), extent=None)
batchnorm.BatchNorm(8, channel_axis=-1, extent=Masked())(loader[0], mask=None)
word: batchnorm.layers.Method = "mabn"
choices: batchnorm.layers.Choices = {"policy": Policy(nonfinite="raise")}
batchnorm.convert(model, word, **choices)
