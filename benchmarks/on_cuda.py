"""The layers on a CUDA device against torch's: `python benchmarks/on_cuda.py` writes `cuda.json`, the card named.

    make test-gpu  # tests first, then this
    # The same code over tiny shapes, no device:
    TRITON_INTERPRET=1 python benchmarks/on_cuda.py --dry-run --out dry.json

It is not named cuda.py, which torch would import as NVIDIA's bindings. Times are medians of CUDA events over
interleaved runs; kernel time is the profiler's sum over kernels. What fails is written down in the place of its number,
and the rest goes on; the last lines printed are what docs/cuda.md asks for.
"""

from __future__ import annotations

import argparse
import copy
import gc
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
    # By the clock and on the CPU.
    dry: bool = False
    pixels: int = 224

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
        with torch.autocast(x.device.type, torch.float16, enabled=x.dtype is torch.float16):
            y = layer(x, *more)
        y.backward(g)

    return run


def tried(make: Callable[[], Any]) -> Any:
    """What it returns, or the error it raises, as a string."""
    try:
        return make()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def timed(runs: dict[str, Any], rig: Rig) -> dict[str, Any]:
    """The median milliseconds of each, interleaved; of what fails, why."""

    def warm(run: Any) -> Any:
        for _ in range(1 if rig.dry else 5):
            run()

    failed = {name: run if isinstance(run, str) else tried(lambda run=run: warm(run)) for name, run in runs.items()}
    failed = {name: why for name, why in failed.items() if why is not None}
    took: dict[str, list[float]] = {name: [] for name in runs if name not in failed}
    for _ in range(rig.rounds):
        for name in took:
            run = runs[name]
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
    return {name: round(statistics.median(values), 5) for name, values in took.items()} | failed


def profiled(run: Callable[[], None], rig: Rig) -> dict[str, float]:
    """The summed kernel time in milliseconds and the number of launches of one step."""
    run()
    rig.wait()
    kinds = [torch.profiler.ProfilerActivity.CPU if rig.dry else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        run()
        rig.wait()
    if rig.dry:
        return {"kernel_ms": 0.0, "launches": len(profile.events() or ())}
    kernels = [event for event in profile.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernel_ms": sum(e.device_time_total for e in kernels) / 1e3, "launches": len(kernels)}


def graphed(run: Callable[[], None], rig: Rig) -> Callable[[], None]:
    """The step as a CUDA graph."""
    if rig.dry:
        return run
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
                    case = Case(n, c, size, dtype, last)
                    found = tried(lambda case=case: one_shape(case, rig))
                    rows.append(case._asdict() | ({"error": found} if isinstance(found, str) else found))
                    tidy()
    return rows


def tidy() -> None:
    """Nothing of one shape is left for the next: tensors, graphs, and how often something was compiled."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    backend = "eager" if rig.dry else "inductor"
    runs["torch compiled"] = stepped(torch.compile(stock(case.c, "plain", case, rig.device), backend=backend), x, g)
    runs["plain compiled"] = stepped(torch.compile(ours(case.c, case, rig.device), backend=backend), x, g)
    # torch's refuses the CPU.
    sync = stock(case.c, "plain" if rig.device == "cpu" else "sync", case, rig.device)
    runs["torch sync of one"] = stepped(sync, x, g)
    for name in ("add relu", "torch add relu", "plain", "torch"):
        runs[f"{name} in a graph"] = tried(lambda name=name: graphed(runs[name], rig))
    found: dict[str, Any] = {"ms": timed(runs, rig)}
    for name in ("torch", "plain", "torch add relu", "add relu"):
        found[name] = tried(lambda name=name: profiled(runs[name], rig))
    # Forward reads x twice and the residual, and writes; backward reads x, g and y twice, and writes two gradients.
    found["gigabytes"] = x.numel() * x.element_size() * (4 + 8) / 1e9
    return found


def methods(rig: Rig) -> list[dict[str, Any]]:
    """Each method's summed kernel time over ResNet-50's layers against plain's, and wall time beside it."""
    rows, n = [], rig.batches[-1]
    for method in [name for name in batchnorm.methods() if name not in LEFT_OUT]:
        total: dict[str, Any] = {"kernel_ms": 0.0, "launches": 0.0, "ms": 0.0, "graph_ms": 0.0}
        for c, size, count in rig.shapes:
            case = Case(n, c, size, "float32", True)
            x, g = case.tensors(rig.device)
            run = stepped(ours(c, case, rig.device, method=method), x, g)
            found = tried(lambda run=run: profiled(run, rig))
            found = {"kernel_ms": found, "launches": found} if isinstance(found, str) else dict(found)
            found["ms"] = timed({"": run}, rig)[""]
            found["graph_ms"] = timed({"": tried(lambda run=run: graphed(run, rig))}, rig)[""]
            for name, value in found.items():
                # The first error stays.
                both = isinstance(value, str), isinstance(total[name], str)
                total[name] = total[name] if both[1] else value if both[0] else round(total[name] + count * value, 4)
            tidy()
        rows.append({"method": method, **total})
    return rows


def bandwidth(rig: Rig) -> float:
    """Gigabytes a second that a copy moves."""
    x = torch.empty(1 << (16 if rig.dry else 28), device=rig.device)
    y = torch.empty_like(x)
    return round(2 * 4 * x.numel() / timed({"copy": lambda: y.copy_(x)}, rig)["copy"] / 1e6, 1)


class Bottleneck(nn.Module):
    """Three convolutions and a residual (He et al. 2016), the stride in the middle one."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.path = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.beside: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.beside = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.path(x) + self.beside(x))


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> nn.Module:
    """ResNet-50 with the stride in its second convolutions, or a narrower and shorter one."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(before, width << stage, 2 if stage and not block else 1))
            before = 4 * width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


def network(rig: Rig) -> dict[str, Any]:
    """A training step of ResNet-50 before and after `convert`, and with activations fused: eager, float32."""
    model = (resnet((1, 1), 4) if rig.dry else resnet()).to(rig.device).to(memory_format=torch.channels_last)  # pyright: ignore
    x = torch.randn(rig.batches[0], 3, *[rig.pixels] * 2, device=rig.device)
    x = x.contiguous(memory_format=torch.channels_last)
    twins = {"stock": model, "converted": batchnorm.convert(copy.deepcopy(model))}
    twins["fused"] = batchnorm.fuse_activations(copy.deepcopy(twins["converted"]))
    twins["renorm"] = batchnorm.fuse_activations(batchnorm.convert(copy.deepcopy(model), "renorm"))

    def step(twin: nn.Module) -> None:
        twin.zero_grad()
        twin(x).square().mean().backward()

    return timed({name: (lambda twin=twin: step(twin)) for name, twin in twins.items()}, rig)


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


def total(rows: list[dict[str, Any]], counts: dict[tuple[int, int], int], of: Callable[[Any], Any]) -> float | None:
    """Summed over ResNet-50's layers; None where a number is missing."""
    found = [(counts[row["c"], row["size"]], tried(lambda row=row: of(row))) for row in rows]
    return None if any(isinstance(value, str) for _, value in found) else sum(n * value for n, value in found)


def summary(found: dict[str, Any], rig: Rig) -> list[dict[str, Any]]:
    """What is asked of the kernels, against what was asked; None where a part failed."""
    counts = {(c, size): n for c, size, n in rig.shapes}
    rows: list[dict[str, Any]] = []

    def said(what: str, value: Any, over: Any, bound: str) -> None:
        good = isinstance(value, (int, float)) and isinstance(over, (int, float)) and over > 0
        rows.append({"what": what, "times": round(value / over, 3) if good else None, "asked": bound})

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found["layers"]:
        groups.setdefault((row["n"], row["dtype"], "channels_last" if row["last"] else "contiguous"), []).append(row)
    for key, group in groups.items():
        name = ", ".join(map(str, key))

        def ms(of: str, group: Any = group) -> Any:
            return total(group, counts, lambda row: row["ms"][of])

        for one, other, bound in [
            ("torch", "plain", "at least 1"), ("torch compiled", "plain compiled", "at least 1"),
            ("torch compiled", "plain", "-"), ("torch sync of one", "plain", "at least 1"),
            ("torch relu", "relu", "at least 1"), ("torch silu", "silu", "at least 1.3"),
            ("torch add relu", "add relu", "at least 1.3"),
            ("torch add relu in a graph", "add relu in a graph", "at least 1.3"),
        ]:  # fmt: skip
            said(f"{one} over {other}: {name}", ms(one), ms(other), bound)
        moved = total(group, counts, lambda row: row["gigabytes"])
        kernels = total(group, counts, lambda row: row["add relu"]["kernel_ms"])
        rate = moved / kernels * 1e3 if moved and kernels else None
        said(f"bytes a second of add relu over a copy's: {name}", rate, found["copy_gb_per_s"], "-")
    plain = next(row for row in found["methods"] if row["method"] == "batchnorm")
    for row in found["methods"]:
        for kind, bound in (("kernel_ms", "at most 1.15"), ("ms", "-"), ("graph_ms", "-")):
            said(f"{row['method']} over plain, {kind} ({row['launches']} launches)", row[kind], plain[kind], bound)
    for name in ("converted", "fused", "renorm"):
        said(f"ResNet-50 stock over {name}", found["network"]["stock"], found["network"][name], "-")
    said("bytes held after all steps over those after a tenth", found["leak"]["late"], found["leak"]["early"], "1")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cuda.json"))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, by Triton's interpreter")
    given = parser.parse_args()
    if given.dry_run:
        from batchnorm.kernels import triton

        triton.interpret(True)
        rig, name = Rig("cpu", [(2, 2, 1)], (2,), 1, 2, True, 32), "none: a dry run, whose times mean nothing"
    elif torch.cuda.is_available():
        rig, name = Rig("cuda", RESNET50, (64, 256), 20, 10_000), torch.cuda.get_device_name()
    else:
        raise SystemExit("benchmarks/on_cuda.py needs a CUDA device; torch finds none (--dry-run needs none)")
    measure(rig, name, given.out)


def measure(rig: Rig, card: str, out: Path) -> None:
    """Everything, written after each part."""
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"backends": batchnorm.backends(), "copy_gb_per_s": tried(lambda: bandwidth(rig))}
    parts: dict[str, Callable[[], Any]] = {
        "layers": lambda: layers(rig), "methods": lambda: methods(rig), "network": lambda: network(rig),
        "leak": lambda: leak(rig), "summary": lambda: summary(found, rig),
    }  # fmt: skip
    for name, part in parts.items():
        found[name] = tried(part)
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: written to {out}", flush=True)
    if isinstance(found["summary"], str):
        raise SystemExit(found["summary"])
    for row in found["summary"]:
        print(f"{row['what']}: {row['times']} (asked: {row['asked']})")
    print(f"{out}: {card}")


if __name__ == "__main__":
    main()
