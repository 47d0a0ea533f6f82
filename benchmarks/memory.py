"""Resident memory of training loops: batchnorm's layers against torch's, by allocator setting.

Three loops: a ResNet-50-like body over images of varying sizes; the same with forked workers that touch what they
inherit; the same under RLIMIT_AS. Each runs in processes of its own, by default and with `kernels.keep_memory()`, which
stock torch gets too. Writes `memory.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import batchnorm
from batchnorm import kernels
from batchnorm.environment import environment

WIDTHS, BLOCKS = (64, 128, 256, 512), (3, 4, 6, 3)
SIZES = (96, 128, 112, 160, 80, 144)


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, each with its batch norm."""

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(into, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        shape = nn.Conv2d(into, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Sequential(*shape) if stride > 1 or into != 4 * width else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) + self.shortcut(x)).relu_()


def network(divide: int) -> nn.Sequential:
    """ResNet-50's body, with its widths and numbers of blocks divided."""
    parts: list[nn.Module] = [nn.Conv2d(3, 64 // divide, 7, 2, 3, bias=False), nn.BatchNorm2d(64 // divide)]
    parts += [nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    into = 64 // divide
    for stage, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
        for block in range(max(1, blocks // divide)):
            stride = 2 if stage and not block else 1
            parts.append(Bottleneck(into, width // divide, stride))
            into = 4 * width // divide
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 10))


def memory(pid: int | str = "self") -> dict[str, int]:
    """Resident and proportional memory of a process now, and its peak, in KiB."""
    found = {}
    for file, names in (("status", ("VmHWM", "VmRSS")), ("smaps_rollup", ("Pss",))):
        with open(f"/proc/{pid}/{file}") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name in names:
                    found[name] = int(value.split()[0])
    return found


def worker(steps: int, batch: int) -> None:
    """A forked child that runs inference on what it inherits and waits, as a loader's worker would."""
    torch.set_num_threads(1)
    for _ in range(steps):
        torch.randn(batch, 3, 128, 128).mul_(2).sum()


def forked(count: int, batch: int) -> int:
    """The proportional memory of this process and its workers together, once the workers have worked."""
    children = []
    ready, go = os.pipe(), os.pipe()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            worker(3, batch)
            os.write(ready[1], b"1")
            os.read(go[0], 1)
            os._exit(0)
        children.append(child)
    for _ in children:
        os.read(ready[0], 1)
    whole = sum(memory(pid)["Pss"] for pid in (os.getpid(), *children))
    os.write(go[1], b"1" * count)
    for child in children:
        os.waitpid(child, 0)
    return whole


def loop(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process' measurement."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.kept:
        kernels.keep_memory()
    model = network(arguments.divide)
    if arguments.layers == "batchnorm":
        batchnorm.convert(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    before = memory()["VmRSS"]
    limit = None
    if arguments.limit:
        with open("/proc/self/statm") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        limit = size + (arguments.limit << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    done, failed, resident = 0, None, []
    try:
        for step in range(arguments.steps):
            side = SIZES[step % len(SIZES)]
            optimizer.zero_grad()
            model(torch.randn(arguments.batch, 3, side, side)).square().mean().backward()
            optimizer.step()
            done += 1
            resident.append(memory()["VmRSS"])
    except (RuntimeError, MemoryError) as error:
        failed = str(error).splitlines()[0][:120]
    found: dict[str, Any] = {"steps": done, "failed": failed, "before": before, **memory()}
    found["mean resident"] = round(sum(resident) / max(1, len(resident)))
    if arguments.workers:
        found["with workers"] = forked(arguments.workers, arguments.batch)
    return found


def least_limit(run: Any, low: int, high: int, apart: int) -> int:
    """The smallest room in MiB above the start that all steps fit in."""
    while high - low > apart:
        middle = (low + high) // 2
        found = run(middle)
        low, high = (low, middle) if found is not None and found["failed"] is None else (middle, high)
    return high


def child(arguments: argparse.Namespace, layers: str, kept: bool, **more: int) -> dict[str, Any] | None:
    """Run `loop` in a process of its own; None where the system ended it."""
    command = [sys.executable, __file__, "--one", "--layers", layers]
    for name in ("steps", "batch", "divide", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    for name, value in more.items():
        command += [f"--{name}", str(value)]
    found = subprocess.run([*command, *(["--kept"] if kept else [])], capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it, interleaved, the median of the rounds by peak."""
    rows = []
    for kept in (False, True):
        for kind in ("varying sizes", "fork workers", "address space"):
            row: dict[str, Any] = {"loop": kind, "memory": "kept" if kept else "default"}
            for layers in ("torch", "batchnorm"):
                if kind == "address space":

                    def run(room: int, layers: str = layers, kept: bool = kept) -> Any:
                        return child(arguments, layers, kept, limit=room, workers=0)

                    row[layers] = {"least room, MiB": least_limit(run, 0, arguments.room, arguments.apart)}
                    continue
                workers = arguments.workers if kind == "fork workers" else 0
                rounds = [child(arguments, layers, kept, workers=workers) for _ in range(arguments.rounds)]
                key = "with workers" if workers else "mean resident"
                rounds = sorted((r for r in rounds if r is not None), key=lambda r: r[key])
                row[layers] = rounds[len(rounds) // 2] if rounds else None
            row["ours over torch's"] = ratio(row, kind)
            print(json.dumps(row), flush=True)
            rows.append(row)
    return {
        "environment": environment(),
        **{k: getattr(arguments, k) for k in ("steps", "batch", "divide")},
        "rows": rows,
    }


def ratio(row: dict[str, Any], kind: str) -> float | None:
    """The figure that counts in each loop."""
    key = {"varying sizes": "mean resident", "fork workers": "with workers", "address space": "least room, MiB"}[kind]
    if not row["torch"] or not row["batchnorm"]:
        return None
    return round(row["batchnorm"][key] / row["torch"][key], 3)


def main() -> None:
    """Measure, print, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--divide", type=int, default=1, help="divides ResNet-50's widths and blocks, for a quick look")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--room", type=int, default=8192, help="MiB that surely suffice under RLIMIT_AS")
    parser.add_argument("--apart", type=int, default=32, help="MiB to which the least room is found")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("memory.json"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--layers", choices=["torch", "batchnorm"], default="torch", help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(loop(arguments)))
        return
    arguments.out.write_text(json.dumps(measure(arguments), indent=1) + "\n")


if __name__ == "__main__":
    main()
