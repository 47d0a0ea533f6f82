"""Error against exact population statistics, for each tool and each way of cutting the data into batches.

The exact statistics of the first layer are those of the data. For later layers the question is the
residual: are the stored statistics those of what the layer receives at inference? Both in float64,
over all data at once. `python benchmarks/recalibrate/errors.py`
"""

from __future__ import annotations

import copy

import torch
from common import distances, fvcore_update, keep, plain_loop, residual, torch_update_bn
from torch import Tensor, nn

import batchnorm


def network(depth: int = 6, width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.BatchNorm2d(3)]
    for index in range(depth):
        layers += [nn.Conv2d(3 if index == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def data(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 8, 8, generator=generator)
    if kind == "correlated pixels":
        # A sample is nearly one colour: few independent values behind many pixels.
        x = 0.2 * x + 2 * torch.randn(256, 3, 1, 1, generator=generator)
    return x + torch.tensor([1.0, 30.0, -5.0]).view(1, 3, 1, 1)


def cut(kind: str, x: Tensor) -> list[Tensor]:
    if kind == "sorted":
        return list(x[x[:, 0].mean((1, 2)).argsort()].split(64))
    if kind == "ragged":
        return list(x.split([60, 4, 50, 1, 40, 2, 44, 3, 50, 2]))
    return list(x.split({"batch 1": 1, "batch 4": 4, "batch 64": 64, "correlated pixels": 64}[kind]))


def main() -> None:
    tools = {
        "torch update_bn": torch_update_bn,
        "fvcore update_bn_stats": fvcore_update(),
        "plain loop": plain_loop,
        "recalibrate(upstream='batch')": lambda m, b: batchnorm.recalibrate(m, b, upstream="batch"),
        "recalibrate": lambda m, b: batchnorm.recalibrate(m, b),
        "recalibrate, layer by layer": lambda m, b: batchnorm.recalibrate(m, b, memory=1),
    }
    rows = []
    for kind in ("batch 1", "batch 4", "batch 64", "ragged", "sorted", "correlated pixels"):
        x = data(kind)
        batches = cut(kind, x)
        whole = torch.cat(batches)
        values = whole.double().movedim(1, 0).flatten(1)
        first = {"0": (values.mean(1), values.var(1))}
        rounded = network().eval()
        rounded[0].running_mean.copy_(first["0"][0])
        rounded[0].running_var.copy_(first["0"][1])
        rows.append(
            {"data": kind, "tool": "float32 rounding of the exact", "first layer": distances(rounded, first)[0]}
        )
        for name, tool in tools.items():
            if tool is None:
                continue
            model = network().eval()
            try:
                tool(model, batches)
            except (ValueError, RuntimeError, AssertionError) as problem:
                rows.append({"data": kind, "tool": name, "failed": f"{type(problem).__name__}: {problem}"[:120]})
                continue
            far = residual(copy.deepcopy(model), whole)
            row = {"data": kind, "tool": name, "first layer": distances(model, first)[0], "worst residual": max(far)}
            rows.append(row)
            print(f"{kind:18} {name:30} first {row['first layer']:.1e}  residual {row['worst residual']:.1e}")
    keep("errors", {"unit": "root mean square over channels, in standard deviations", "rows": rows})


if __name__ == "__main__":
    main()
