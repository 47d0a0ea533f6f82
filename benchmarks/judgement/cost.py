"""What `diagnose` costs on networks with many layers: forward passes over the data given, and processor time.

    PYTHONPATH=src:benchmarks python -m judgement.cost [--size 224] [--json FILE]

24 images in three batches, random weights, a metric. Processor time is that of the process, so that other work on the
machine does not count; it is given in passes of the model in eval mode over the same images. Needs torchvision.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import batchnorm

NETWORKS = {"densenet121": {}, "inception_v3": {"aux_logits": False, "init_weights": False}}


def accuracy(output: Any, batch: Any) -> float:
    return float((output.argmax(1) == batch[1]).double().mean())


@torch.no_grad()
def one_pass(model: Any, loader: Any) -> float:
    start = time.process_time()
    for x, _ in loader:
        model(x)
    return time.process_time() - start


def measure(name: str, size: int) -> dict[str, Any]:
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, **NETWORKS[name]).eval()
    x = functional.interpolate(torch.randn(24, 3, size // 8, size // 8), size=size)
    loader = list(zip(x.split(8), torch.arange(24).split(8), strict=True))
    one_pass(model, loader)
    alone = min(one_pass(model, loader) for _ in range(2))
    start = time.process_time()
    report = batchnorm.diagnose(model, loader, accuracy, higher_is_better=True, progress=False)
    spent = time.process_time() - start
    return {
        "network": name, "layers": len(report.layers), "size": size, "passes": round(report.evidence.passes, 2),
        "a pass, s": round(alone, 2), "diagnose, s": round(spent, 2), "in passes": round(spent / alone, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, options.size) for name in NETWORKS]
    for row in rows:
        print(row)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
