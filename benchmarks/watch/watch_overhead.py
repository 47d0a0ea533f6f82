"""What `watch` costs: a training step with and without it, interleaved in one process, medians.

Processor time of the process on one thread, which other programs on the machine disturb little.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batchnorm.diagnosis import watch

HERE = Path(__file__).parent


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """10 layers of 32 channels at 32 x 32, 8 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(10):
        layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(8, 3, 32, 32)


def efficientnet() -> tuple[nn.Module, torch.Tensor]:
    """49 layers, 4 images of 96 pixels."""
    import efficientnet_lite_pytorch as lite

    return lite.EfficientNet.from_name("efficientnet-lite0"), torch.randn(4, 3, 96, 96)


def narrow() -> tuple[nn.Module, torch.Tensor]:
    """49 layers of 8 channels, 4 samples: next to nothing but overhead, so that it can be told from the noise."""
    layers: list[nn.Module] = []
    for _ in range(49):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8)]
    return nn.Sequential(*layers), torch.randn(4, 8)


def step(model: nn.Module, x: torch.Tensor, optimizer: Any) -> float:
    start = time.process_time()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return time.process_time() - start


def main(blocks: int = 8) -> None:
    """Blocks of 20 steps, without and with, in turns; a block has two looks, as `every=10` gives."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {}
    for make in (narrow, convolutional, efficientnet):
        torch.manual_seed(0)
        model, x = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for _ in range(3):
            step(model, x, optimizer)
        plain, watched = [], []
        layers = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        run = None
        for _ in range(blocks):
            plain.append(sum(step(model, x, optimizer) for _ in range(20)))
            # The first steps are all looked at; they are taken before the clock runs.
            run = watch(model, optimizer)
            for _ in range(10):
                step(model, x, optimizer)
            watched.append(sum(step(model, x, optimizer) for _ in range(20)))
            run.close()
        ratios = [w / p for w, p in zip(watched, plain, strict=True)]
        results[make.__name__] = {
            "milliseconds a step": round(1000 * statistics.median(plain) / 20, 2),
            "watched": round(1000 * statistics.median(watched) / 20, 2),
            "added, microseconds a step and layer": round(
                1e6 * (statistics.median(watched) - statistics.median(plain)) / 20 / layers, 1
            ),
            "ratio of medians": round(statistics.median(watched) / statistics.median(plain), 4),
            "ratio of minima": round(min(watched) / min(plain), 4),
            "median of ratios": round(statistics.median(ratios), 4),
            "ratios": [round(r, 4) for r in ratios],
        }
        print(make.__name__, results[make.__name__], flush=True)
    added = results["narrow"]["added, microseconds a step and layer"]
    for name, layers in (("convolutional", 10), ("efficientnet", 49)):
        row = results[name]
        row["overhead by the narrow network's cost"] = round(added * layers / 1000 / row["milliseconds a step"], 4)
    out = {"torch": torch.__version__, "threads": torch.get_num_threads(), "every": 10, "results": results}
    (HERE / "watch_overhead.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
