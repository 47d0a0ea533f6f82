"""What `recalibrate` takes on a ResNet-50 where the activations of all batches do not fit in memory.

Each run is a process of its own, limited to so many MiB of data above the model. For loaders of 10 to 10,000
batches of 8 x 3 x 64 x 64: batches read, forwards of the data, seconds, peak memory, the standard error stated.
For several seeds of the data: the error of every layer against `exact=True` over the standard error it states.
`python benchmarks/recalibrate/large.py --picture docs/images/recalibrate_large.png`
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import keep
from torch import Tensor, nn

import batchnorm

SIZES = (10, 30, 100, 300, 1000, 2000, 10_000)


class Bottleneck(nn.Module):
    """ResNet-50's block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + same)


def resnet50() -> nn.Sequential:
    """53 batch norm layers; weights as they are initialised."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    inputs = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for number in range(count):
            blocks.append(Bottleneck(inputs, width, 2 if stage and not number else 1))
            inputs = 4 * width
    model = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 1000),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class Images(torch.utils.data.Dataset):
    """Smooth random pictures that differ in brightness and contrast, each made anew from its number."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        coarse = torch.randn(1, 3, 8, 8, generator=generator)
        light, contrast = torch.randn(2, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=64, mode="bilinear")[0]
        return smooth * contrast.mul(0.4).exp() + 0.5 * light + 0.1 * torch.randn(3, 64, 64, generator=generator)


def loader(batches: int, seed: int) -> torch.utils.data.DataLoader[Tensor]:
    """In the order of their numbers."""
    return torch.utils.data.DataLoader(Images(8 * batches, seed), 8)


def status(name: str) -> int:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) // 1024


def one(batches: int, seed: int, limit: int, against: bool) -> dict[str, Any]:
    """One run, in this process; against compares with an exact run, which is made without the limit."""
    torch.set_num_threads(1)
    model = resnet50()
    exact = None
    if against:
        exact = resnet50()
        # In a process of its own this would have the same limit; its error does not depend on it.
        batchnorm.recalibrate(exact, loader(batches, seed), exact=True, progress=False)
    model.eval()(torch.zeros(8, 3, 64, 64))
    held = status("VmRSS")
    if not against:
        soft = (status("VmData") + limit) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))
    start = time.perf_counter()
    result = batchnorm.recalibrate(model, loader(batches, seed), memory=(limit << 20) // 4 if against else None)
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {
        "batches": batches,
        "seed": seed,
        "read": result.batches,
        "forwards": result.forwards,
        "seconds": round(seconds, 2),
        "MiB above the model": status("VmHWM") - held,
        "standard error": result.standard_error,
    }
    if exact is not None:
        del row["MiB above the model"]
        ratios = [
            distance(model.get_submodule(n), exact.get_submodule(n)) / found.standard_error
            for n, found in result.layers.items()
        ]
        row["error over standard error, worst layer"] = max(ratios)
        row["error over standard error, median layer"] = sorted(ratios)[len(ratios) // 2]
        row["error, worst layer"] = max(distance(model.get_submodule(n), exact.get_submodule(n)) for n in result.layers)
    return row


def distance(layer: Any, other: Any) -> float:
    """Root mean square over channels of what mean and standard deviation differ by, in standard deviations."""
    var = other.running_var + other.eps
    of_mean = (layer.running_mean - other.running_mean).square() / var
    of_std = ((layer.running_var + layer.eps).sqrt() / var.sqrt() - 1).square()
    return float((of_mean + of_std).mean().sqrt())


def picture(rows: list[dict[str, Any]], to: Path) -> None:
    """Seconds and memory over the number of batches."""
    import altair

    base = altair.Chart(altair.Data(values=rows)).encode(
        x=altair.X("batches:Q", scale=altair.Scale(type="log"), title="batches in the loader")
    )
    panels = [
        base.mark_line(point=True).encode(y=altair.Y(f"{name}:Q", scale=altair.Scale(zero=True))).properties(width=260)
        for name in ("seconds", "MiB above the model", "read")
    ]
    altair.hconcat(*panels).save(to, ppi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--against", type=int, default=2000, help="batches of the runs compared with exact=True")
    parser.add_argument("--limit", type=int, default=1024, help="MiB above the model")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        batches, seed, against = given.one
        print(json.dumps(one(batches, seed, given.limit, bool(against))))
        return
    asked = [(size, 0, 0) for size in given.sizes] + [(given.against, seed, 1) for seed in range(given.seeds)]
    rows = []
    for case in asked:
        command = [sys.executable, __file__, "--limit", str(given.limit), "--one", *map(str, case)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise SystemExit(found.stderr)
        rows.append(json.loads(found.stdout))
        print(rows[-1], flush=True)
    memory = [row for row in rows if "MiB above the model" in row]
    keep("large", {"limit, MiB": given.limit, "runs": memory, "against exact": rows[len(memory) :]})
    if given.picture:
        picture(memory, given.picture)


if __name__ == "__main__":
    main()
