"""The layers against torch's: interleaved in one process, with a copy of the tensor as the roofline."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import batchnorm

SHAPES = [(32, 64, 56, 56), (64, 256, 14, 14), (8, 32, 8, 8), (512, 256)]


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def step(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> Callable[[], object]:
    """A training step of one layer, forward and backward."""

    def run() -> None:
        layer(x).backward(g)
        x.grad = None

    return run


def measure(shape: tuple[int, ...], memory_format: torch.memory_format, rounds: int) -> dict[str, object]:
    """Median seconds of each contender, taken in turn, and their ratios to stock."""
    x = torch.randn(shape) + 1
    x = (x.contiguous(memory_format=memory_format) if x.dim() == 4 else x).requires_grad_()
    g = torch.randn_like(x)
    stock = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
    ours = batchnorm.BatchNorm2d if x.dim() == 4 else batchnorm.BatchNorm1d
    contenders = {"stock": step(stock(shape[1]), x, g)}
    for method in ("batchnorm", "debiased", "pooled", "population"):
        contenders[method] = step(ours(shape[1], method=method), x, g)
    source = x.detach()
    contenders["copy"] = source.clone
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 3):
        for name, call in contenders.items():
            seconds = timed(call)
            if turn >= 3:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "shape": shape,
        "memory_format": str(memory_format).removeprefix("torch."),
        "milliseconds": {name: round(value * 1e3, 4) for name, value in medians.items()},
        "ratio_to_stock": {name: round(value / medians["stock"], 3) for name, value in medians.items()},
    }


def main() -> None:
    """Measure, print ratios and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("layer.json"))
    arguments = parser.parse_args()
    rows = []
    for shape in SHAPES:
        formats = (torch.contiguous_format, torch.channels_last) if len(shape) == 4 else (torch.contiguous_format,)
        for memory_format in formats:
            row = measure(shape, memory_format, arguments.rounds)
            print(row["shape"], row["memory_format"], row["ratio_to_stock"])
            rows.append(row)
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
