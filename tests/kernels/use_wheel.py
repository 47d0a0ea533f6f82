"""A training step from an installed package, and which backend served it: for `make wheel`, `make no-compiler`."""

import sys

import torch

import batchnorm
from batchnorm import kernels

x = torch.randn(8, 3, 20, 20, requires_grad=True)
layer, stock = batchnorm.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
y = layer(x)
assert torch.allclose(y, stock(x), atol=1e-5)
y.square().sum().backward()
assert torch.allclose(layer.running_var, stock.running_var, atol=1e-5)
assert "site-packages" in batchnorm.__file__, batchnorm.__file__
assert kernels.select(x).name == sys.argv[1], kernels.backends()
if sys.argv[1] == "native" and sys.platform == "linux":
    with open("/proc/self/maps") as maps:
        runtimes = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(runtimes) == 1, runtimes
print(kernels.backends()["native"])
