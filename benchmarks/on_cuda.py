"""The layers on a CUDA device against torch's: `python benchmarks/on_cuda.py` writes `cuda.json`, the card named.

    make test-gpu  # tests first, then this
    # The same code over tiny shapes, no device:
    TRITON_INTERPRET=1 python benchmarks/on_cuda.py --dry-run --out dry.json

It is not named cuda.py, which torch would import as NVIDIA's bindings. Times are medians of CUDA events over
interleaved runs; kernel time is the profiler's sum over kernels.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

import batchnorm

# Channels and size of ResNet-50's layers at 224 pixels, and how many there are of each.
RESNET50 = [
    (64, 112, 1), (64, 56, 6), (256, 56, 4), (128, 56, 1), (128, 28, 7), (512, 28, 5), (256, 28, 1), (256, 14, 11),
    (1024, 14, 7), (512, 14, 1), (512, 7, 5), (2048, 7, 4),
]  # fmt: skip
# What sums over ranks, takes a derivative in its forward or goes sample by sample is not held to plain's time.
LEFT_OUT = ("sync", "cbn", "online", "masked", "weighted", "banks", "example-weighing")


class Rig(NamedTuple):
    """Where and how much is measured."""

    device: str
    shapes: list[tuple[int, int, int]]
    batches: tuple[int, ...]
    rounds: int
    leak_steps: int

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


class Case(NamedTuple):
    """One shape, dtype and layout."""

    n: int
    c: int
    size: int
    dtype: str
    last: bool

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        memory = torch.channels_last if self.last else torch.contiguous_format
        dtype = {"float16 autocast": torch.float16}.get(self.dtype) or getattr(torch, self.dtype)
        shape = (self.n, self.c, self.size, self.size)
        x, g = (torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory) for _ in range(2))
        return x.requires_grad_(), g


def stepped(layer: Callable[..., torch.Tensor], x: torch.Tensor, g: torch.Tensor, *more: Any) -> Callable[[], None]:
    """One forward and backward, as a function of nothing."""

    def run() -> None:
        x.grad = None
        with torch.autocast(x.device.type, x.dtype, enabled=x.dtype is torch.float16):
            y = layer(x, *more)
        y.backward(g)

    return run


def timed(runs: dict[str, Callable[[], None]], rig: Rig) -> dict[str, float]:
    """The median milliseconds of each, interleaved."""
    for run in runs.values():
        for _ in range(1 if rig.dry else 5):
            run()
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rig.rounds):
        for name, run in runs.items():
            if rig.dry:
                start = time.perf_counter()
                run()
                took[name].append(1e3 * (time.perf_counter() - start))
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            took[name].append(begin.elapsed_time(end))
    return {name: round(statistics.median(values), 5) for name, values in took.items()}


def profiled(run: Callable[[], None], rig: Rig) -> dict[str, float]:
    """The summed kernel time in milliseconds and the number of launches of one step."""
    run()
    rig.wait()
    kinds = [torch.profiler.ProfilerActivity.CPU if rig.dry else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        run()
        rig.wait()
    if rig.dry:
        return {"kernel_ms": 0.0, "launches": len(profile.events())}
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernel_ms": sum(e.device_time_total for e in kernels) / 1e3, "launches": len(kernels)}


def graphed(run: Callable[[], None], rig: Rig) -> Callable[[], None]:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def stock(c: int, kind: str, case: Case, device: str) -> nn.Module:
    """Torch's layer, with what follows it in operations of its own."""
    layer: nn.Module = nn.SyncBatchNorm(c) if kind == "sync" else nn.BatchNorm2d(c)
    return layer.to(device, torch.bfloat16 if case.dtype == "bfloat16" else torch.float32).train()


def ours(c: int, case: Case, device: str, **options: Any) -> batchnorm.BatchNorm2d:
    """This package's layer."""
    layer = batchnorm.BatchNorm2d(c, **options)
    return layer.to(device, torch.bfloat16 if case.dtype == "bfloat16" else torch.float32).train()


def layers(rig: Rig) -> list[dict[str, Any]]:
    """Plain layers, and those with an activation and a residual, against torch's: eager, compiled, in a graph."""
    rows = []
    for n in rig.batches:
        for c, size, _ in rig.shapes:
            for dtype in ("float32", "float16 autocast", "bfloat16"):
                for last in (False, True):
                    rows.append(one_shape(Case(n, c, size, dtype, last), rig))
    return rows


def one_shape(case: Case, rig: Rig) -> dict[str, Any]:
    """Every contender on one shape."""
    x, g = case.tensors(rig.device)
    r = torch.randn_like(x)
    torchs = stock(case.c, "plain", case, rig.device)
    runs = {"torch": stepped(torchs, x, g), "plain": stepped(ours(case.c, case, rig.device), x, g)}
    fused = {name: ours(case.c, case, rig.device, activation=name) for name in ("relu", "silu")}
    for name, layer in fused.items():
        after = getattr(functional, name)
        runs[f"torch {name}"] = stepped(lambda t, after=after: after(torchs(t)), x, g)
        runs[name] = stepped(layer, x, g)
    runs["torch add relu"] = stepped(lambda t: functional.relu(torchs(t) + r), x, g)
    runs["add relu"] = stepped(lambda t: fused["relu"](t, residual=r), x, g)
    if not rig.dry:
        runs["torch compiled"] = stepped(torch.compile(stock(case.c, "plain", case, rig.device)), x, g)
        runs["plain compiled"] = stepped(torch.compile(ours(case.c, case, rig.device)), x, g)
        runs["torch sync of one"] = stepped(stock(case.c, "sync", case, rig.device), x, g)
        runs["add relu in a graph"] = graphed(runs["add relu"], rig)
        runs["torch add relu in a graph"] = graphed(runs["torch add relu"], rig)
    found = {**case._asdict(), "ms": timed(runs, rig)}
    found["add relu"] = profiled(runs["add relu"], rig)
    # Forward reads x twice and the residual, and writes; backward reads x, g and y twice, and writes two gradients.
    found["gigabytes"] = x.numel() * x.element_size() * (4 + 8) / 1e9
    return found


def methods(rig: Rig) -> list[dict[str, Any]]:
    """Each method's summed kernel time over ResNet-50's layers against plain's, and wall time beside it."""
    rows, n = [], rig.batches[-1]
    for method in [name for name in batchnorm.methods() if name not in LEFT_OUT]:
        total = {"kernel_ms": 0.0, "launches": 0.0, "ms": 0.0, "graph_ms": 0.0}
        for c, size, count in rig.shapes:
            case = Case(n, c, size, "float32", True)
            x, g = case.tensors(rig.device)
            run = stepped(ours(c, case, rig.device, method=method), x, g)
            found = profiled(run, rig) | {"ms": timed({"": run}, rig)[""]}
            found["graph_ms"] = 0.0 if rig.dry else timed({"": graphed(run, rig)}, rig)[""]
            for name, value in found.items():
                total[name] += count * value
        rows.append({"method": method, **{name: round(value, 4) for name, value in total.items()}})
    return rows


def bandwidth(rig: Rig) -> float:
    """Gigabytes a second that a copy moves."""
    x = torch.empty(1 << (16 if rig.dry else 28), device=rig.device)
    y = torch.empty_like(x)
    return round(2 * 4 * x.numel() / timed({"copy": lambda: y.copy_(x)}, rig)["copy"] / 1e6, 1)


def network(rig: Rig) -> dict[str, float]:
    """A training step of ResNet-50 before and after `convert`; of a small stand-in where torchvision is missing."""
    try:
        from torchvision.models import resnet50

        model: nn.Module = resnet50() if not rig.dry else small()
    except ImportError:
        model = small()
    model = model.to(rig.device).to(memory_format=torch.channels_last)  # pyright: ignore
    x = torch.randn(rig.batches[0], 3, *[16 if rig.dry else 224] * 2, device=rig.device)
    twins = {"stock": model, "converted": batchnorm.convert(copy.deepcopy(model))}
    twins["fused"] = batchnorm.fuse_activations(copy.deepcopy(twins["converted"]))
    return timed({name: (lambda twin=twin: twin(x).square().mean().backward()) for name, twin in twins.items()}, rig)


def small() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))


def leak(rig: Rig) -> dict[str, int]:
    """Bytes allocated after the first steps and after all."""
    case = Case(8, 8, 8, "float32", False)
    x, g = case.tensors(rig.device)
    run = stepped(ours(8, case, rig.device, method="renorm", activation="relu"), x, g)
    kept = []
    for step in range(rig.leak_steps):
        run()
        if step in (rig.leak_steps // 10, rig.leak_steps - 1):
            rig.wait()
            kept.append(0 if rig.dry else torch.cuda.memory_allocated())
    return {"steps": rig.leak_steps, "early": kept[0], "late": kept[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cuda.json"))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, by Triton's interpreter")
    given = parser.parse_args()
    if given.dry_run:
        from batchnorm.kernels import triton

        triton.interpret(True)
        rig, name = Rig("cpu", [(2, 2, 1)], (2,), 1, 2), "none: a dry run, whose times mean nothing"
    elif torch.cuda.is_available():
        rig, name = Rig("cuda", RESNET50, (64, 256), 20, 10_000), torch.cuda.get_device_name()
    else:
        raise SystemExit("benchmarks/on_cuda.py needs a CUDA device; torch finds none (--dry-run needs none)")
    found = {"card": name, "torch": torch.__version__, "copy_gb_per_s": bandwidth(rig)}
    for part in (layers, methods, network, leak):
        found[part.__name__] = part(rig)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{given.out}: {name}")


if __name__ == "__main__":
    main()
