"""Every named method with what it needs, as a module of one input: what generic tests over methods drive."""

import torch
from torch import nn

import batchnorm
from batchnorm.layers import METHODS

# Their backward uses running averages: it is not the derivative of the forward, and has no second one.
INEXACT = ("mabn", "online", "power", "unified")
EXACT = tuple(method for method in METHODS if method not in INEXACT)
# Windows and warm-ups of the papers are hundreds of batches long; these are over before the test is.
SHORT = {
    "mabn": {"coupling": batchnorm.layers.MABN(window=3, warmup=1, correct_after=2)},
    "power": {"coupling": batchnorm.layers.PowerNorm(warmup=1)},
    "unified": {"coupling": batchnorm.layers.UnifiedNorm(window=3, warmup=1)},
    "cbn": {"coupling": batchnorm.layers.CrossIteration(window=3, burn_in=1)},
    "ghost": {"extent": batchnorm.layers.Ghost(2)},
    "window": {"estimator": batchnorm.layers.Window(2)},
}


class Subject(nn.Module):
    """A layer behind the 1x1 map that some methods look back at, called with the mask that some require."""

    def __init__(self, method: str, channels: int, rank: int = 4, dtype=torch.float32, **options):
        super().__init__()
        kind = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d, 5: batchnorm.BatchNorm3d}
        self.method = method
        self.before = nn.Linear(channels, channels, bias=False, dtype=dtype)
        with torch.no_grad():
            self.before.weight.copy_(torch.eye(channels) + 0.1)
        self.layer = kind[rank](channels, method=method, dtype=dtype, **{**SHORT.get(method, {}), **options})
        if method == "cbn":
            self.layer.attach(self.before)

    def forward(self, x):
        if self.method == "cbn":
            x = self.before(x.movedim(1, -1)).movedim(-1, 1)
        if self.method == "masked":
            mask = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
            mask[0] = False
            return self.layer(x, mask=mask)
        if self.method == "weighted":
            return self.layer(x, weights=torch.arange(len(x), dtype=x.dtype))
        return self.layer(x)
