"""`adapt(mode="domain")` beside `recalibrate` on EfficientNet-Lite0: time, and each layer against what it receives."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

import batchnorm
from batchnorm.models import adapt, batch_norm_layers

sys.path.insert(0, str(Path(__file__).parents[1] / "recalibrate"))
from common import efficientnet, photographs

IMAGES, SIZE, BATCH = 48, 128, 16


def residual(model: nn.Module, batches: list[torch.Tensor]) -> float:
    """At the worst layer: how far mean and deviation are off, the RMS over channels in its own deviations."""
    received: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, layer in batch_norm_layers(model).items():
        kept = received.setdefault(name, [])
        handles.append(layer.register_forward_pre_hook(lambda m, args, kept=kept: kept.append(args[0].double())))
    with torch.no_grad():
        for x in batches:
            model(x)
    for handle in handles:
        handle.remove()
    worst = 0.0
    for name, layer in batch_norm_layers(model).items():
        var, mean = torch.var_mean(torch.cat(received[name]), (0, 2, 3), correction=0)
        # What the layer makes of its own mean and of one deviation above it should be bias, and weight more.
        x = torch.stack([mean, mean + (var + layer.eps).sqrt()])[:, :, None, None]
        with torch.no_grad():
            low, high = layer.double()(x)[..., 0, 0]
        layer.float()
        weight = layer.weight.detach().double()
        off = torch.stack([low - layer.bias.detach().double(), high - low - weight]) / weight
        worst = max(worst, float(off.square().mean(1).sum().sqrt()))
    return worst


def main() -> None:
    """Measure both in turn, print and keep the JSON."""
    torch.set_num_threads(1)
    model = efficientnet()
    if model is None:
        return
    torch.manual_seed(0)
    # A shift that every layer meets: darker, less contrast, noise.
    x = photographs(IMAGES, SIZE) * 0.3 - 0.4 + 0.1 * torch.randn(IMAGES, 3, SIZE, SIZE)
    batches = list(x.split(BATCH))
    seconds: dict[str, list[float]] = {"adapt": [], "recalibrate": []}
    found = {"stored": residual(model, batches)}
    for turn in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        calls = {
            "adapt": lambda m: adapt(m, batches, "domain"),
            "recalibrate": lambda m: batchnorm.recalibrate(m, batches),
        }
        for name, call in sorted(calls.items(), reverse=bool(turn % 2)):
            other = copy.deepcopy(model)
            start = time.process_time()
            call(other)
            spent = time.process_time() - start
            seconds[name].append(spent)
            found[name] = residual(other, batches)
            print(name, round(spent, 2), found[name], flush=True)
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    result = {
        "torch": torch.__version__,
        "images": IMAGES,
        "size": SIZE,
        "clock": "process time",
        "turns": len(seconds["adapt"]),
        "seconds": {name: round(value, 2) for name, value in middle.items()},
        "ratio": round(sorted(a / b for a, b in zip(*seconds.values(), strict=True))[len(seconds["adapt"]) // 2], 2),
        "worst_layer": found,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
