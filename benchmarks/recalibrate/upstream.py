"""When it matters what later layers were calibrated on: batch size, order and depth, on Fashion-MNIST.

Networks of 3, 8 and 20 batch norm layers are trained, then recalibrated on 512 samples with both
values of `upstream`. Reported: the worst layer's residual on those samples, and the error on the
test set. `python benchmarks/recalibrate/upstream.py`
"""

from __future__ import annotations

import copy
import time

import torch
from common import error, fashion_mnist, keep, residual, train
from torch import Tensor, nn

import batchnorm


class Block(nn.Module):
    """A residual step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolution makes."""
        return x + self.bn(self.conv(x)).relu()


def network(depth: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    stem = [nn.Conv2d(1, 16, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    chain = [
        m
        for _ in range(depth - 1)
        for m in (nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    ]
    blocks = [Block(16) for _ in range(depth - 1)] if depth > 6 else chain
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def main() -> None:
    data = fashion_mnist()
    if data is None:
        return
    x, y, test_x, test_y = data
    rows = []
    for depth in (3, 8, 20):
        for seed in range(1):
            model = train(network(depth, seed), x, y, steps=200, seed=seed)
            own = error(model, test_x, test_y)
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(x), generator=generator)[:512]
            for kind in ("1", "4", "16", "64", "64 sorted by class"):
                size = int(kind.split()[0])
                index = chosen[y[chosen].argsort()] if "sorted" in kind else chosen
                batches = x[index].split(size)
                for upstream in ("batch", "population"):
                    copied = copy.deepcopy(model)
                    start = time.perf_counter()
                    result = batchnorm.recalibrate(copied, batches, upstream=upstream)
                    seconds = time.perf_counter() - start
                    far = max(residual(copied, x[index]))
                    wrong = error(copied, test_x, test_y)
                    rows.append(
                        {
                            "layers": depth,
                            "seed": seed,
                            "batch": kind,
                            "upstream": upstream,
                            "worst residual": far,
                            "standard error": result.standard_error,
                            "test error %": wrong,
                            "test error % before": own,
                            "seconds": seconds,
                        }
                    )
                    print(
                        f"{depth:2} layers seed {seed} batch {kind:20} {upstream:10} residual {far:.1e} "
                        f"error {wrong:.2f} (was {own:.2f})  {seconds:.2f} s",
                        flush=True,
                    )
    keep("upstream", {"rows": rows})


if __name__ == "__main__":
    main()
