"""A training step of real networks, and the memory of an in-place activation, against stock torch.

Four twins of each network: stock, after `convert`, after `convert` and `fuse_activations`, and without batch norm and
activations, which is what no layer of any package can pass. Interleaved in one process, in random order; the median of
paired ratios is kept, by default and (`--keep`) where the allocator keeps memory for all. Writes `network.json`, or
`network-kept.json`. Two of the networks are torchvision's: `make bench` runs it where that is installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import batchnorm


def efficientnet_lite0() -> nn.Module:
    """The one of the package of that name."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def torchvisions(name: str) -> Callable[[], nn.Module]:
    """A network of torchvision, whose compiled part does not load beside a CPU torch."""

    def build() -> nn.Module:
        importlib.import_module("tests.trainers")  # declares the operators of that part
        return getattr(importlib.import_module("torchvision.models"), name)()

    return build


# Their activations: ReLU6; hard-swish and ReLU; SiLU.
NETWORKS = {
    "EfficientNet-Lite0": efficientnet_lite0,
    "MobileNetV3-Large": torchvisions("mobilenet_v3_large"),
    "EfficientNet-B0": torchvisions("efficientnet_b0"),
}
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


def without(model: nn.Module) -> nn.Module:
    """The model with an identity for every batch norm and activation."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (*ACTIVATIONS, nn.BatchNorm2d)):
                setattr(parent, name, nn.Identity())
    return model


def twins(build: Callable[[], nn.Module], x: torch.Tensor) -> dict[str, nn.Module]:
    """The network in four forms, without what is random."""
    found = {
        "stock": build(),
        "converted": batchnorm.convert(build()),
        "fused": batchnorm.fuse_activations(batchnorm.convert(build()), x, progress=False),
        "without": without(build()),
    }
    for model in found.values():
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif type(module).__name__ == "StochasticDepth":
                module.eval()
    last = {} if x.is_contiguous() else {"memory_format": torch.channels_last}
    return {name: model.to(**last) if last else model for name, model in found.items()}


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


def measured(name: str, last: bool, rounds: int) -> dict[str, Any]:
    """How many times as fast as stock each twin's step is, and the milliseconds."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 128, 128)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    calls = {twin: step(model, x) for twin, model in twins(NETWORKS[name], x).items()}
    times: dict[str, list[float]] = {twin: [] for twin in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for turn in range(rounds + 2):
        shuffle(order)  # what ran before leaves caches and freed memory to the next
        for twin in order:
            seconds = calls[twin]()
            if turn >= 2:
                times[twin].append(seconds)
    row: dict[str, Any] = {
        "milliseconds": {twin: round(statistics.median(values) * 1e3, 2) for twin, values in times.items()}
    }
    for twin in list(times)[1:]:
        ratios = (a / b for a, b in zip(times["stock"], times[twin], strict=True))
        row[f"{twin}, times stock"] = round(statistics.median(ratios), 3)
    return row


def main() -> None:
    """Measure, print, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true", help="let the allocator keep freed memory, for every twin")
    parser.add_argument("--only", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).with_name("network-kept.json" if arguments.keep else "network.json")
    if arguments.keep:
        print(batchnorm.kernels.keep_memory())
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "OMP_PROC_BIND": os.environ.get("OMP_PROC_BIND"),
    }
    for name in arguments.only:
        result[f"{name} step"] = {"contiguous": measured(name, False, arguments.rounds)}
        result[f"{name} step"]["channels_last"] = measured(name, True, arguments.rounds)
    x = torch.randn(32, 64, 56, 56)
    stock = kept_bytes(nn.Sequential(nn.BatchNorm2d(64), nn.LeakyReLU(inplace=True)), x.clone().requires_grad_())
    ours = kept_bytes(batchnorm.BatchNorm2d(64, activation="leaky_relu", inplace=True), x.clone().requires_grad_())
    told = {"stock bytes": stock, "in place bytes": ours, "over stock": round(ours / stock, 3)}
    result["BN + leaky_relu"] = told
    print(json.dumps(result, indent=1))
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
