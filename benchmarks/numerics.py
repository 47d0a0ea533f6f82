"""How far a layer's numbers lie from float64, by backend: torch's layer, the native kernels, and without them.

    python benchmarks/numerics.py    # prints the tables of docs/numerics.md and writes numerics.json

Accuracy, not time: a busy machine gives the same figures. Every backend gets the same float32 input; the reference
is float64 arithmetic on it. Largest difference of y and of the input gradient, and of the variance, relatively.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm import kernels

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPE, LARGE = (32, 16, 28, 28), (64, 32, 56, 56)
MEANS = (0.0, 1e2, 1e3, 1e4, 1e5, 1e6)


def exact(x: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx and the unbiased variance in float64, weight 1 and bias 0."""
    wide = x.detach().double().requires_grad_()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    y = (wide - mean) / (var + eps).sqrt()
    y.backward(g.double())
    assert wide.grad is not None
    n = x.numel() // x.shape[1]
    return y.detach(), wide.grad, var.detach().flatten() * n / (n - 1)


def errors(layer: nn.Module, x: Tensor, g: Tensor, truth: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Largest errors of one training forward and backward of a fresh layer at momentum 1."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(g)
    y = y.detach()
    assert x.grad is not None
    var: Any = layer.running_var
    return {
        "y": float((y.double() - truth[0]).abs().max()),
        "dx": float((x.grad.double() - truth[1]).abs().max() / truth[1].abs().max()),
        "var": float((var.double() / truth[2] - 1).abs().max()),
    }


def contenders() -> dict[str, tuple[str | None, type[nn.Module]]]:
    """The backend to choose, and the layer."""
    found: dict[str, tuple[str | None, type[nn.Module]]] = {"torch": (None, nn.BatchNorm2d)}
    if "not built" not in kernels.backends()["native"]:
        found["batchnorm, native"] = ("native", batchnorm.BatchNorm2d)
    return {**found, "batchnorm, native off": ("reference", batchnorm.BatchNorm2d)}


def measure(shape: tuple[int, int, int, int], mean: float, seed: int = 0) -> list[dict[str, Any]]:
    """One row a contender and memory format; standard deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(shape, generator=generator) + mean
    gradient = torch.randn(shape, generator=generator)
    rows = []
    for format_name, memory_format in FORMATS.items():
        x, g = (t.contiguous(memory_format=memory_format) for t in (data, gradient))
        for name, (backend, kind) in contenders().items():
            layer = kind(shape[1], momentum=1.0)
            truth = exact(x, g, 1e-5)
            kernels.use(backend)
            try:
                found = errors(layer, x, g, truth)
            finally:
                kernels.use()
            rows.append({"shape": shape, "mean": mean, "format": format_name, "layer": name, **found})
    return rows


def table(rows: list[dict[str, Any]], what: str) -> str:
    """Means down, formats and layers across."""
    columns = list(dict.fromkeys((row["format"], row["layer"]) for row in rows))
    lines = [
        "| mean | " + " | ".join(f"{layer}, {form}" for form, layer in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for mean in dict.fromkeys(row["mean"] for row in rows):
        cells = {(row["format"], row["layer"]): row[what] for row in rows if row["mean"] == mean}
        lines.append(f"| {mean:g} | " + " | ".join(f"{cells[c]:.1e}" for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("numerics.json"))
    chosen = parser.parse_args()
    # torch's sums in channels_last depend on the number of threads.
    torch.set_num_threads(1)
    small = [row for mean in MEANS for row in measure(SHAPE, mean)]
    large = [row for mean in (0.0, 1e5) for row in measure(LARGE, mean)]
    for title, rows in (("(32, 16, 28, 28)", small), ("(64, 32, 56, 56)", large)):
        for what in ("y", "dx", "var"):
            print(f"\n{what} {title}\n\n{table(rows, what)}")
    result = {"torch": torch.__version__, "native": kernels.backends()["native"], "rows": small + large}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
