"""What `recalibrate` takes on a ResNet-50 where the activations of all batches do not fit in memory.

Each run is a process of its own, limited to so many MiB of data above the model. For loaders of 10 to 10,000
batches of 8 x 3 x 64 x 64: batches read, forwards of the data, seconds, peak memory, the standard error stated.
For several orders of the same 2,000 batches: the error of every layer against the exact statistics of all of them, over
the standard error it states. The exact statistics are computed here block by block, with the activations of all images
in memory (7 GB, outside the limit), and on few batches they are compared with `exact=True`.
`python benchmarks/recalibrate/large.py --picture docs/images/recalibrate_large.png`
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import HERE, keep
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

    def __init__(self, count: int, order: int | None = None) -> None:
        self.numbers = torch.arange(count)
        if order is not None:
            self.numbers = torch.randperm(count, generator=torch.Generator().manual_seed(order))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.numbers[index]))
        coarse = torch.randn(1, 3, 8, 8, generator=generator)
        light, contrast = torch.randn(2, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=64, mode="bilinear")[0]
        return smooth * contrast.mul(0.4).exp() + 0.5 * light + 0.1 * torch.randn(3, 64, 64, generator=generator)


def loader(batches: int, order: int | None = None) -> torch.utils.data.DataLoader[Tensor]:
    """The same images in an order of their own, or in the order of their numbers."""
    return torch.utils.data.DataLoader(Images(8 * batches, order), 8)


def status(name: str) -> int:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) // 1024


def settle(layer: nn.BatchNorm2d, received: Callable[[], Any]) -> None:
    """Store mean and unbiased variance of all values of the chunks that received() yields, merged in float64."""
    count, mean, m2 = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for x in received():
        var, own = torch.var_mean(x, (0, 2, 3), correction=0)
        n, var, own = x.numel() // x.shape[1], var.double(), own.double()
        away, total = own - mean, count + n
        mean, m2 = mean + away * n / total, m2 + var * n + away.square() * count * n / total
        count = total
    layer.running_mean, layer.running_var = mean.float(), (m2 / (count - 1)).float()


@torch.no_grad()
def exact(batches: int) -> nn.Sequential:
    """A ResNet-50 whose layers store what they receive at inference on all batches: computed without the package."""
    model, images = resnet50().eval(), Images(8 * batches)
    conv, norm, relu, pool = model[:4]
    ends = [(low, min(low + 64, len(images))) for low in range(0, len(images), 64)]
    xs = [conv(torch.stack([images[i] for i in range(low, high)])) for low, high in ends]
    settle(norm, lambda: xs)
    for number, x in enumerate(xs):
        xs[number] = pool(relu(norm(x)))
    for block in model[4:-3]:
        hs = [block.conv1(x) for x in xs]
        settle(block.bn1, lambda hs=hs: hs)
        for number, h in enumerate(hs):
            hs[number] = block.conv2(block.relu(block.bn1(h)))
        settle(block.bn2, lambda hs=hs: hs)
        for number, h in enumerate(hs):
            hs[number] = block.relu(block.bn2(h))
        # The wide activations are computed twice rather than kept.
        settle(block.bn3, lambda hs=hs, conv=block.conv3: map(conv, hs))
        if block.downsample is not None:
            settle(block.downsample[1], lambda conv=block.downsample[0]: map(conv, xs))
        for number, h in enumerate(hs):
            same = xs[number] if block.downsample is None else block.downsample(xs[number])
            xs[number] = block.relu(block.bn3(block.conv3(h)) + same)
    return model


def one(batches: int, order: int, limit: int, against: Path | None) -> dict[str, Any]:
    """One run, in this process; against holds the exact statistics of the same images."""
    torch.set_num_threads(1)
    model = resnet50()
    model.eval()(torch.zeros(8, 3, 64, 64))
    held = status("VmRSS")
    soft = (status("VmData") + limit) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))
    start, busy = time.perf_counter(), time.process_time()
    result = batchnorm.recalibrate(model, loader(batches, order))
    row: dict[str, Any] = {
        "batches": batches,
        "order": order,
        "read": result.batches,
        "forwards": result.forwards,
        "seconds": round(time.perf_counter() - start, 2),
        "processor seconds": round(time.process_time() - busy, 2),
        "MiB above the model": status("VmHWM") - held,
        "standard error": result.standard_error,
        "plan": result.plan,
    }
    if found := re.search(r"standard error ([\d.e-]+) to ([\d.e-]+)", result.plan):
        row["standard error said before"] = [float(end) for end in found.groups()]
    if against is not None:
        other = resnet50()
        other.load_state_dict(torch.load(against))
        errors = {n: distance(model.get_submodule(n), other.get_submodule(n)) for n in result.layers}
        ratios = sorted(errors[n] / found.standard_error for n, found in result.layers.items())
        row["error over standard error, worst layer"] = ratios[-1]
        row["error over standard error, median layer"] = ratios[len(ratios) // 2]
        row["layers above twice"] = sum(ratio > 2 for ratio in ratios)
        row["error, worst layer"] = max(errors.values())
    return row


def agreement(batches: int) -> float:
    """How far `exact=True` and `exact` are apart in the worst layer, in standard deviations."""
    model, other = resnet50(), exact(batches)
    result = batchnorm.recalibrate(model, loader(batches), exact=True, progress=False)
    return max(distance(model.get_submodule(n), other.get_submodule(n)) for n in result.layers)


def distance(layer: Any, other: Any) -> float:
    """Root mean square over channels of what mean and standard deviation differ by, in standard deviations."""
    var = other.running_var + other.eps
    of_mean = (layer.running_mean - other.running_mean).square() / var
    of_std = ((layer.running_var + layer.eps).sqrt() / var.sqrt() - 1).square()
    return float((of_mean + of_std).mean().sqrt())


def picture(rows: list[dict[str, Any]], to: Path) -> None:
    """Seconds, memory and batches read over the number of batches."""
    import altair

    base = altair.Chart(altair.Data(values=rows)).encode(
        x=altair.X(
            "batches:Q",
            scale=altair.Scale(type="log"),
            axis=altair.Axis(values=[10, 100, 1000, 10_000]),
            title="batches in the loader",
        )
    )
    titles = {
        "processor seconds": "processor seconds",
        "MiB above the model": "MiB above the model",
        "read": "batches read",
    }
    panels = [
        base.mark_line(point=True).encode(y=altair.Y(f"{key}:Q", title=title)).properties(width=260, height=220)
        for key, title in titles.items()
    ]
    altair.hconcat(*panels).save(to, ppi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--orders", type=int, default=10, help="how many; the same data in an order of its own each")
    parser.add_argument("--against", type=int, default=2000, help="batches of the runs compared with the exact result")
    parser.add_argument("--agree", type=int, default=20, help="batches on which exact=True is compared with it")
    parser.add_argument("--limit", type=int, default=1024, help="MiB above the model")
    parser.add_argument("--exact", type=Path, help="a file that keeps the exact statistics, made if it is not there")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        batches, order, against = given.one
        print(json.dumps(one(int(batches), int(order), given.limit, Path(against) if against else None)))
        return

    def run(batches: int, order: int, against: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--limit", str(given.limit), "--one", str(batches), str(order), against]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise SystemExit(found.stderr)
        row = json.loads(found.stdout)
        print(row, flush=True)
        return row

    torch.set_num_threads(1)
    kept = HERE / "large.json"
    # A part that is not asked for stays as it was measured.
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    results["limit, MiB"] = given.limit
    if given.sizes:
        results["runs"] = [run(size, 0, "") for size in given.sizes]
        keep("large", results)
    if given.agree:
        apart = agreement(given.agree)
        print(f"exact=True and the calculation here differ by {apart:.1e} on {given.agree} batches", flush=True)
        results["exact=True on fewer batches"] = {"batches": given.agree, "apart": apart}
    if given.orders:
        with tempfile.TemporaryDirectory() as folder:
            path = given.exact or Path(folder) / "exact.pt"
            if not path.exists():
                start = time.process_time()
                torch.save(exact(given.against).state_dict(), path)
                results["exact, processor seconds"] = round(time.process_time() - start)
            rows = results["against exact"] = []
            for order in range(given.orders):
                rows.append(run(given.against, order, str(path)))
                keep("large", results)
    keep("large", results)
    if given.picture:
        picture(results["runs"], given.picture)


if __name__ == "__main__":
    main()
