"""Time to a given error, where it comes from, and what collecting costs on top of a plain eval forward.

Fashion-MNIST: accuracy and time against torch's `update_bn` over the whole loader.
EfficientNet-Lite0: time, and the error against its own pass over everything.
`python benchmarks/recalibrate/speed.py [threads]`
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from common import (
    distances,
    efficientnet,
    error,
    fashion_mnist,
    fvcore_update,
    interleaved,
    keep,
    median,
    photographs,
    plain_loop,
    received,
    small_network,
    torch_update_bn,
    train,
)
from torch import nn

import batchnorm

REPEATS = 7


@torch.no_grad()
def eval_forward(model: nn.Module, batches: Any) -> None:
    model.eval()
    for batch in batches:
        model(batch)


def ratios(times: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Median seconds, and the median over rounds of base / this, since rounds share the machine's load."""
    paired = {name: [b / t for b, t in zip(times[base], values, strict=True)] for name, values in times.items()}
    return {name: {"seconds": median(values), f"{base} / this": median(paired[name])} for name, values in times.items()}


def fashion() -> dict[str, Any]:
    data = fashion_mnist()
    if data is None:
        return {}
    x, y, test_x, test_y = data
    model = train(small_network(0), x, y, steps=1200)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(1 + 0.3 * torch.randn_like(layer.weight))  # statistics no longer fit
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    full = x[order].split(128)
    half = full[: len(full) // 2]
    models = {name: copy.deepcopy(model) for name in ("torch update_bn", "until=0.01", "until=0.02", "all", "batch")}
    results: dict[str, Any] = {}

    def ours(name: str, batches: Any, **options: Any) -> Any:
        def run() -> None:
            results[name] = batchnorm.recalibrate(models[name], batches, **options)

        return run

    times = interleaved(
        {
            "torch update_bn": lambda: torch_update_bn(models["torch update_bn"], full),
            "until=0.01": ours("until=0.01", full, until=0.01),
            "until=0.02": ours("until=0.02", full, until=0.02),
            "all": ours("all", full),
            "batch": ours("batch", full, upstream="batch"),
        },
        REPEATS,
    )
    table = ratios(times, "torch update_bn")
    for name, row in table.items():
        row["test error %"] = error(models[name], test_x, test_y)
        row["samples"] = results[name].samples if name in results else len(x)
    cheaper = interleaved(
        {
            "torch update_bn": lambda: torch_update_bn(copy.deepcopy(model), half),
            "plain eval forward": lambda: eval_forward(copy.deepcopy(model), half),
            "batch": lambda: batchnorm.recalibrate(copy.deepcopy(model), half, upstream="batch"),
            "population": lambda: batchnorm.recalibrate(copy.deepcopy(model), half),
        },
        REPEATS,
    )
    return {
        "before, test error %": error(model, test_x, test_y),
        "to an error": table,
        "equal samples": ratios(cheaper, "torch update_bn"),
    }


def lite() -> dict[str, Any]:
    model = efficientnet()
    if model is None:
        return {}
    size, batch, count = 128, 16, 256
    x = photographs(count, size)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(1 + 0.02 * torch.randn_like(layer.weight))
    full = x.split(batch)
    few = full[:6]
    last = [b.contiguous(memory_format=torch.channels_last) for b in few]
    whole = copy.deepcopy(model)
    batchnorm.recalibrate(whole, full, memory=8 << 30)
    truth = received(whole, x, 64)
    models = {name: copy.deepcopy(model) for name in ("torch update_bn", "until=0.05", "until=0.05, batch")}
    results: dict[str, Any] = {}

    def ours(name: str, **options: Any) -> Any:
        def run() -> None:
            results[name] = batchnorm.recalibrate(models[name], full, **options)

        return run

    times = interleaved(
        {
            "torch update_bn": lambda: torch_update_bn(models["torch update_bn"], full),
            "until=0.05": ours("until=0.05", until=0.05),
            "until=0.05, batch": ours("until=0.05, batch", until=0.05, upstream="batch"),
        },
        1,
    )
    table = ratios(times, "torch update_bn")
    for name, row in table.items():
        row["worst layer from the full pass's fixed point (std)"] = max(distances(models[name], truth))
        row["samples"] = results[name].samples if name in results else count
    same: dict[str, Any] = {}
    for layout, batches in (("contiguous", few), ("channels_last", last)):
        contenders = {
            "plain eval forward": lambda batches=batches: eval_forward(model, batches),
            "torch update_bn": lambda batches=batches: torch_update_bn(model, batches),
            "plain loop": lambda batches=batches: plain_loop(model, batches),
            "fvcore": None if fvcore_update() is None else lambda batches=batches: fvcore_update()(model, batches),
            "batch": lambda batches=batches: batchnorm.recalibrate(model, batches, upstream="batch"),
            "population": lambda batches=batches: batchnorm.recalibrate(model, batches),
        }
        if layout == "contiguous":
            contenders["batch, channels_last=True"] = lambda: batchnorm.recalibrate(
                model, few, upstream="batch", channels_last=True
            )
            contenders["batch, channels_last=True, bfloat16"] = lambda: batchnorm.recalibrate(
                model, few, upstream="batch", channels_last=True, autocast=torch.bfloat16
            )
        times = interleaved({k: v for k, v in contenders.items() if v is not None}, REPEATS)
        table_same = ratios(times, "torch update_bn")
        for name, row in table_same.items():
            row["this / plain eval forward"] = median(
                [t / e for t, e in zip(times[name], times["plain eval forward"], strict=True)]
            )
        same[layout] = table_same
    return {"to an error": table, "equal samples, 6 batches of 16 at 128 px": same}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    results = {"Fashion-MNIST": fashion()}
    print(results, flush=True)
    keep("speed", results)
    results["EfficientNet-Lite0"] = lite()
    print(results["EfficientNet-Lite0"], flush=True)
    keep("speed", results)


if __name__ == "__main__":
    main()
