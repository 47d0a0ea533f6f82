"""A training step of a real network, and the memory of an in-place activation, against stock torch.

Interleaved in one process; the median of paired ratios is kept. Writes `network.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import batchnorm


def network() -> nn.Module:
    """EfficientNet-Lite0 without its head's dropout, so that both twins do the same."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def step(model: nn.Module, x: torch.Tensor) -> Callable[[], float]:
    """Forward, backward, an optimizer step."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def run() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - start

    return run


def kept_bytes(module: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps for the backward of module, its output included: distinct memory alone."""
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        keep(module(x))
    return sum(kept.values())


def main() -> None:
    """Measure, print, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("network.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = {}
    for last in (False, True):
        x = torch.randn(16, 3, 128, 128)
        twins = {"stock": network(), "converted": batchnorm.convert(network())}
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
            twins = {name: twin.to(memory_format=torch.channels_last) for name, twin in twins.items()}
        calls = {name: step(twin, x) for name, twin in twins.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(arguments.rounds + 2):
            for name, call in calls.items():
                seconds = call()
                if turn >= 2:
                    times[name].append(seconds)
        ratio = statistics.median(a / b for a, b in zip(times["stock"], times["converted"], strict=True))
        medians = {name: round(statistics.median(values) * 1e3, 2) for name, values in times.items()}
        rows["channels_last" if last else "contiguous"] = {"milliseconds": medians, "times stock": round(ratio, 3)}
    x = torch.randn(32, 64, 56, 56)
    stock = kept_bytes(nn.Sequential(nn.BatchNorm2d(64), nn.LeakyReLU(inplace=True)), x.clone().requires_grad_())
    ours = kept_bytes(batchnorm.BatchNorm2d(64, activation="leaky_relu", inplace=True), x.clone().requires_grad_())
    told = {"stock bytes": stock, "in place bytes": ours, "over stock": round(ours / stock, 3)}
    result = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "OMP_PROC_BIND": os.environ.get("OMP_PROC_BIND"),
        "EfficientNet-Lite0 step": rows,
        "BN + leaky_relu": told,
    }
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
