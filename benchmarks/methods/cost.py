"""What each named method costs: forward and backward of one layer against plain batch norm and torch's.

All contenders take turns in one process, in a new order every round; medians are compared. A copy of
the tensor is the roofline: nothing that reads x and writes y can be faster. Warm-ups of the methods
are over before the clock starts; windows have their default sizes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import batchnorm

SHAPES = [
    ((32, 64, 56, 56), torch.contiguous_format),
    ((32, 64, 56, 56), torch.channels_last),
    ((64, 256, 14, 14), torch.contiguous_format),
    ((256, 128), torch.contiguous_format),
    ((32, 64, 1024), torch.contiguous_format),
]
TARGET = 1.15
# These wait for other processes, differentiate the layer before, or walk through the samples one by one.
EXEMPT = ("sync", "cbn", "online")
# Steps of warm-up that the papers have and that would hide the cost of what comes after.
STARTED: dict[str, dict[str, Any]] = {
    "mabn": {"coupling": batchnorm.layers.MABN(warmup=1, correct_after=2)},
    "power": {"coupling": batchnorm.layers.PowerNorm(warmup=1)},
    "unified": {"coupling": batchnorm.layers.UnifiedNorm(warmup=1)},
    "cbn": {"coupling": batchnorm.layers.CrossIteration(burn_in=1)},
}
# Steps before the clock starts; those with windows get as many as fill them.
BEFORE = 3
FILLED = {"mabn": 18, "window": 11, "unified": 6, "map+cbn": 6}
NOTES = {
    "ghost": "four groups",
    "masked": "a mask that is False for a tenth of the positions, made beforehand",
    "weighted": "one weight a sample",
    "banks": "inside the context of one bank",
    "cbn": "behind a 1x1 map, less the same map before plain batch norm, plus plain batch norm",
    "sync": "one process",
}

Call = Callable[[], object]


def plain_class(x: Tensor) -> type[nn.Module]:
    """This package's layer for the rank of x."""
    return batchnorm.BatchNorm2d if x.dim() == 4 else batchnorm.BatchNorm1d


def build(method: str, x: Tensor) -> nn.Module:
    """The layer of a method, its warm-up cut."""
    choices = {"extent": batchnorm.layers.Ghost(len(x) // 4)} if method == "ghost" else STARTED.get(method, {})
    return plain_class(x)(x.shape[1], method=method, **choices)


def map_before(x: Tensor) -> nn.Module:
    """A 1x1 map of the channels, for what looks back at it."""
    channels = x.shape[1]
    kinds: dict[int, Callable[[], nn.Module]] = {
        2: lambda: nn.Linear(channels, channels, bias=False),
        3: lambda: nn.Conv1d(channels, channels, 1, bias=False),
        4: lambda: nn.Conv2d(channels, channels, 1, bias=False),
    }
    return kinds[x.dim()]()


def arguments_of(method: str, x: Tensor) -> dict[str, Tensor]:
    """The mask or weights a method asks for."""
    if method == "masked":
        return {"mask": torch.rand(len(x), *x.shape[2:]) > 0.1}
    return {"weights": torch.rand(len(x)) + 0.5} if method == "weighted" else {}


def training_step(module: nn.Module, x: Tensor, g: Tensor, **given: Tensor) -> Call:
    """Forward and backward."""

    def run() -> Tensor:
        y = module(x, **given)
        y.backward(g)
        x.grad = None
        return y.detach()

    return run


def inference(module: nn.Module, x: Tensor) -> Call:
    """Forward in eval mode without a graph."""

    def run() -> Tensor:
        with torch.no_grad():
            return module(x)

    return run


def contenders(x: Tensor, g: Tensor, stack: ExitStack) -> dict[str, Call]:
    """Everything that takes turns: the copy, torch's layer, each method, and what cbn is compared with."""
    stock = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
    source = x.detach()
    found: dict[str, Call] = {"copy": source.clone, "torch": training_step(stock(x.shape[1]), x, g)}
    for method in batchnorm.methods():
        layer = build(method, x)
        if method == "banks":
            stack.enter_context(batchnorm.bank(layer, "target"))
        if method == "cbn":
            before = map_before(x)
            layer.attach(before)  # pyright: ignore[reportCallIssue]
            found["map+cbn"] = training_step(nn.Sequential(before, layer), x, g)
            found["map+batchnorm"] = training_step(nn.Sequential(map_before(x), build("batchnorm", x)), x, g)
        else:
            found[method] = training_step(layer, x, g, **arguments_of(method, x))
    for method in ("batchnorm", "example-weighing", "online"):
        found[f"{method}, inference"] = inference(build(method, x).eval(), source)
    return {**found, "torch, inference": inference(stock(x.shape[1]).eval(), source)}


def prepare(calls: dict[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Run each past its warm-up; what raises or is not finite is set aside with the reason."""
    usable: dict[str, Call] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            for _ in range(FILLED.get(name, BEFORE)):
                y = call()
        except RuntimeError as error:
            failed[name] = str(error).splitlines()[0]
            continue
        except ValueError as error:
            failed[name] = str(error)
            continue
        if isinstance(y, Tensor) and not bool(torch.isfinite(y).all()):
            failed[name] = "its output is not finite"
        else:
            usable[name] = call
    return usable, failed


def take_turns(calls: dict[str, Call], rounds: int, tick: Callable[[], None]) -> dict[str, list[float]]:
    """Milliseconds of each call, a number a round."""
    order, shuffle = list(calls), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
        tick()
    return times


def ratios(medians: dict[str, float], base: str) -> dict[str, float]:
    """Training against training, inference against inference."""
    return {
        name: round(value / medians[f"{base}, inference" if name.endswith(", inference") else base], 3)
        for name, value in medians.items()
        if not name.startswith("map+")
    }


def measure(shape: tuple[int, ...], layout: torch.memory_format, rounds: int, tick: Callable[[], None]) -> Any:
    """One row: medians, how far the quartiles are apart, and ratios."""
    torch.manual_seed(0)
    x = torch.randn(shape) + 1
    x = (x.contiguous(memory_format=layout) if x.dim() == 4 else x).requires_grad_()
    g = torch.randn_like(x)
    with ExitStack() as stack:
        calls, failed = prepare(contenders(x, g, stack))
        times = take_turns(calls, rounds, tick)
    medians = {name: statistics.median(values) for name, values in times.items()}
    spread = {name: quartile_spread(values) for name, values in times.items()}
    if {"map+cbn", "map+batchnorm"} <= medians.keys():
        medians["cbn"] = medians["map+cbn"] - medians["map+batchnorm"] + medians["batchnorm"]
    return {
        "shape": shape,
        "memory_format": str(layout).removeprefix("torch."),
        "milliseconds": {name: round(value, 4) for name, value in medians.items()},
        "fastest_milliseconds": {name: round(min(values), 4) for name, values in times.items()},
        "quartile_spread": spread,
        "ratio_to_batchnorm": ratios(medians, "batchnorm"),
        "ratio_to_torch": ratios(medians, "torch"),
        "failed": failed,
    }


def quartile_spread(values: list[float]) -> float:
    """The distance between the quartiles over the median: how noisy a figure is."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / middle, 3)


def over_target(rows: Iterable[Any]) -> dict[str, float]:
    """The methods that are to be within the target and are not, with their worst ratio."""
    worst: dict[str, float] = {}
    for row in rows:
        for name, ratio in row["ratio_to_batchnorm"].items():
            if name in batchnorm.methods() and name not in EXEMPT:
                worst[name] = max(worst.get(name, 0.0), ratio)
    return {name: ratio for name, ratio in worst.items() if ratio > TARGET}


def table(rows: list[Any]) -> Table:
    """Ratios to plain batch norm, a column a shape."""
    shown = Table("method", title="Forward and backward: times plain batch norm", title_justify="left")
    for row in rows:
        layout = " cl" if row["memory_format"] == "channels_last" else ""
        shown.add_column("x".join(map(str, row["shape"])) + layout, justify="right")
    for name in dict.fromkeys(name for row in rows for name in row["ratio_to_batchnorm"]):
        cells = [row["ratio_to_batchnorm"].get(name) for row in rows]
        shown.add_row(name, *("failed" if cell is None else f"{cell:.2f}" for cell in cells))
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Measure, print ratios and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    rows: list[Any] = []
    with Progress() as progress:
        bar = progress.add_task("", total=len(SHAPES) * chosen.rounds)
        for shape, layout in SHAPES:
            progress.update(bar, description=str(shape))
            rows.append(measure(shape, layout, chosen.rounds, lambda: progress.advance(bar)))
    console = Console(width=120)
    console.print(table(rows))
    slow = over_target(rows)
    console.print(f"over {TARGET} times plain batch norm: {slow or 'none'}")
    result = {
        "torch": torch.__version__,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "target": TARGET,
        "over_target": slow,
        "notes": NOTES,
        "rows": rows,
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
