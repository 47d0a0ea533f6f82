"""Held-out error before and after recalibration, three seeds, on Fashion-MNIST.

Repairs: a lagging average, pruned, merged, quantised and averaged weights; and a healthy network,
where the result must say that nothing needed doing. `python benchmarks/recalibrate/repair.py`
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import error, fashion_mnist, keep, small_network, torch_update_bn, train
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import batchnorm


@torch.no_grad()
def pruned(model: nn.Module) -> nn.Module:
    """Half of the filters of two layers set to zero, the smaller half."""
    for index in (3, 6):
        weight = model.get_submodule(str(index)).weight
        size = weight.flatten(1).norm(dim=1)  # pyright: ignore[reportCallIssue]
        weight[size.argsort()[: len(size) // 2]] = 0  # pyright: ignore[reportIndexIssue]
    return model


@torch.no_grad()
def rounded(model: nn.Module, bits: int = 3) -> nn.Module:
    """Convolutions on a grid of 2^bits - 1 values."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            step = module.weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
            module.weight.copy_((module.weight / step).round() * step)
    return model


@torch.no_grad()
def merged(a: nn.Module, b: nn.Module) -> nn.Module:
    """The mean of all floating-point entries of two networks."""
    out = copy.deepcopy(a)
    state, other = out.state_dict(), b.state_dict()
    out.load_state_dict({k: (v + other[k]) / 2 if v.is_floating_point() else v for k, v in state.items()})
    return out


def averaged(model: nn.Module, x: Tensor, y: Tensor, seed: int, kind: str) -> nn.Module:
    """The average of the weights along further steps at a high rate; its buffers are those of the start."""
    average = get_ema_multi_avg_fn(0.98) if kind == "EMA" else None
    swa = AveragedModel(model, multi_avg_fn=average)
    for part in range(20):
        train(model, x, y, steps=10, lr=0.1, seed=100 * seed + part)
        swa.update_parameters(model)
    return swa


def main() -> None:
    data = fashion_mnist()
    if data is None:
        return
    x, y, test_x, test_y = data
    rows: list[dict[str, Any]] = []
    for seed in range(3):
        healthy = train(small_network(seed), x, y, steps=400, seed=seed)
        # A second branch of the same start, so that the mean of weights is meaningful.
        branches = [train(copy.deepcopy(healthy), x, y, steps=300, lr=0.3, seed=10 + seed + k) for k in (0, 50)]
        lagging = small_network(seed)
        for module in lagging.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01
        train(lagging, x, y, steps=60, seed=seed)
        cases = {
            "healthy": copy.deepcopy(healthy),
            "EMA lag, 60 steps at momentum 0.01": lagging,
            "pruned": pruned(copy.deepcopy(healthy)),
            "merged": merged(*branches),
            "3-bit": rounded(copy.deepcopy(healthy)),
            "SWA": averaged(copy.deepcopy(healthy), x, y, seed, "SWA"),
            "EMA of weights": averaged(copy.deepcopy(healthy), x, y, seed, "EMA"),
        }
        generator = torch.Generator().manual_seed(seed)
        batches = x[torch.randperm(len(x), generator=generator)].split(128)
        for name, model in cases.items():
            before = error(model, test_x, test_y)
            by_torch = copy.deepcopy(model)
            torch_update_bn(by_torch, batches[:80])
            result = batchnorm.recalibrate(model, batches, until=0.02)
            row = {
                "case": name,
                "seed": seed,
                "error % before": before,
                "error % after": error(model, test_x, test_y),
                "error % after torch update_bn on 10240 samples": error(by_torch, test_x, test_y),
                "samples": result.samples,
                "needed": result.needed,
                "moved (std)": max(layer.moved for layer in result.layers.values()),
            }
            rows.append(row)
            print(row, flush=True)
    keep("repair", {"until": 0.02, "rows": rows})


if __name__ == "__main__":
    main()
