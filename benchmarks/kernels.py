"""The native kernels against torch's: interleaved in one process, medians, a copy of the tensor as the roofline.

`--clock cpu` counts processor time, for machines that others use at the same time; `--compile` adds torch.compile.
`--keep` has glibc keep freed memory on both sides (`kernels.keep_memory`); without it both have the default allocator,
whose fresh pages cost large tensors more than the arithmetic on them. Shapes where torch is faster are listed last.
`OMP_PROC_BIND=true` in the environment keeps two threads off one core, where each would wait for the other to spin.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm import kernels
from batchnorm.kernels import calls, native
from batchnorm.kernels.allocator import allocator
from batchnorm.layers import rule

SHAPES = [
    ("ResNet-50", (32, 64, 112, 112)),
    ("ResNet-50", (32, 64, 56, 56)),
    ("ResNet-50", (32, 256, 56, 56)),
    ("ResNet-50", (32, 128, 28, 28)),
    ("ResNet-50", (32, 256, 14, 14)),
    ("ResNet-50", (32, 1024, 14, 14)),
    ("ResNet-50", (32, 512, 7, 7)),
    ("ResNet-50", (32, 2048, 7, 7)),
    ("EfficientNet-Lite0 depthwise", (16, 32, 64, 64)),
    ("EfficientNet-Lite0 depthwise", (16, 144, 32, 32)),
    ("EfficientNet-Lite0 depthwise", (16, 480, 8, 8)),
    ("EfficientNet-Lite0 depthwise", (16, 1152, 4, 4)),
    ("tiny", (8, 32, 8, 8)),
    ("features", (256, 128)),
    ("features", (4096, 512)),
    ("sequence", (32, 64, 1024)),
    ("volume", (4, 32, 16, 28, 28)),
]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
STOCK = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OURS = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d, 5: batchnorm.BatchNorm3d}
CURVED: dict[str, Any] = {"relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish}
# At least, and the aim: by default, and with memory kept on both sides. Outputs come from torch's allocator, so
# what is compared is the passes over memory and the Python around them.
GOALS = {
    "default": {
        "step, contiguous": (1.5, 1.7),
        "step, channels last and (N, C)": (1.15, 1.5),
        "step, worst shape": (0.97, 1.0),
        "BN + ReLU": (1.8, 2.0),
        "BN + add + ReLU": (1.5, 2.0),
        "kernels alone, forward": (3.0, 6.0),
        "kernels alone, backward": (1.8, 3.0),
        "statistics": (1.5, None),
        "renorm": (1.7, 2.5),
        "ghost": (1.7, 2.5),
        "masked": (2.5, 4.0),
        "frozen": (1.0, 1.3),
        "sync of one": (1.2, 1.5),
    },
    "kept": {
        "step, contiguous": (1.8, 2.0),
        "step, channels last and (N, C)": (1.3, 1.65),
        "step, worst shape": (0.97, 1.0),
        "BN + ReLU": (2.1, 2.4),
        "BN + add + ReLU": (1.7, 2.2),
        "kernels alone, forward": (3.0, 6.0),
        "kernels alone, backward": (1.8, 3.0),
        "statistics": (1.5, None),
        "renorm": (2.0, 2.6),
        "ghost": (1.9, 2.5),
        "masked": (2.5, 4.0),
        "frozen": (1.0, 1.3),
        "sync of one": (1.4, 1.8),
    },
}
Call = Callable[[], object]


def step(module: Callable[..., torch.Tensor], x: torch.Tensor, g: torch.Tensor, *more: torch.Tensor) -> Call:
    """A training step: forward, backward, gradients dropped."""

    def run() -> None:
        module(x, *more).backward(g)
        for leaf in (x, *more):
            leaf.grad = None

    return run


class AddRelu(nn.Module):
    """Stock batch norm, residual and ReLU, as residual networks have it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.relu = norm, nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(x).add_(residual))


class PeerRenorm(nn.Module):
    """Renorm in torch operations, the fastest spelling known: torch's kernel for the statistics, then an affine map."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            mean, var = (v.float() for v in torch.batch_norm_update_stats(x, None, None, 0.1))
            std = (var + 1e-5).sqrt()
            r, d = (std / self.std).clamp(1 / 3, 3), ((mean - self.mean) / self.std).clamp(-5, 5)
            self.mean.lerp_(mean, 0.01)
            self.std.lerp_(std, 0.01)
        return functional.batch_norm(x, None, None, self.weight * r, self.bias + self.weight * d, True, 0.0, 1e-5)


class PeerGhost(nn.Module):
    """Ghost batch norm as published implementations have it: chunks, stock batch norm on each, concatenated."""

    def __init__(self, norm: nn.Module, groups: int) -> None:
        super().__init__()
        self.norm, self.groups = norm, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.norm(part) for part in x.chunk(self.groups)])


class PeerMasked(nn.Module):
    """Masked batch norm in torch operations: sums over what the mask keeps, an affine map."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        kept = mask[:, None].expand(x.shape[0], 1, *x.shape[2:])
        n = kept.sum()
        mean = torch.where(kept, x, 0).sum(axes) / n
        centred = torch.where(kept, x - mean.view(shape), 0)
        var = centred.square().sum(axes) / n
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.var.lerp_(var * n / (n - 1), 0.1)
        y = centred * ((var + 1e-5).rsqrt() * self.weight).view(shape) + self.bias.view(shape)
        return torch.where(kept, y, 0)


def frozen(layer: Any) -> nn.Module:
    """A layer that normalises with its running statistics while the weights train."""
    if hasattr(layer, "frozen"):
        layer.frozen = True
    else:
        layer.eval()
    return layer


def alone(x: torch.Tensor, g: torch.Tensor) -> dict[str, Call]:
    """The kernels on buffers that exist, against the ATen kernels (which allocate their own output)."""
    c = x.shape[1]
    data, last = native.arranged(x)
    told = native.data(data, last, 1)
    extension = native._native
    numbers, move = rule.Numbers(), rule.Move()
    spec = calls.spec(*numbers, *move[:6], 1e-5, True, False, 0, 0.0, False, 0)
    vectors = extension.Vectors(0, 0, 0, 0, 0, False)
    y, dx = torch.empty_like(data), torch.empty_like(data)
    weight, bias = torch.ones(c), torch.zeros(c)
    grads = torch.empty(2, c)
    saved = calls.Saved(1, c).values
    sums = torch.empty(2, 1, c, dtype=torch.float64)
    p = [t.data_ptr() for t in (data, y, g, dx, weight, bias, saved, grads[0], grads[1])]

    # Addresses keep nothing alive.
    buffers = (data, y, g, dx, weight, bias, saved, grads, sums)

    def forward(held: object = buffers) -> None:
        extension.forward(
            spec, told, p[0], p[1], 0, 0, 0, p[4], p[5], 0, p[6], vectors, 0, 0, False, 0, 0, False, False
        )

    def backward(held: object = buffers) -> None:
        extension.backward(
            spec,
            told,
            p[2],
            p[0],
            0,
            p[3],
            0,
            0,
            0,
            p[4],
            p[5],
            0,
            p[6],
            p[7],
            p[8],
            False,
            0,
            False,
            0.0,
            0.0,
            0,
            0,
            False,
            sums.data_ptr(),
            calls.WHOLE,
            0,
        )

    forward()
    stock = torch.native_batch_norm(data, weight, bias, None, None, True, 0.0, 1e-5)
    out = (torch.empty_like(data), torch.empty(c), torch.empty(c))

    def stock_forward() -> None:
        torch.native_batch_norm(data, weight, bias, None, None, True, 0.0, 1e-5, out=out)

    def stock_backward() -> None:
        mask = [True, True, True]
        torch.ops.aten.native_batch_norm_backward(g, data, weight, None, None, stock[1], stock[2], True, 1e-5, mask)

    rows = torch.empty(4, 1, c, dtype=torch.float64)
    return {
        "stock forward alone": stock_forward,
        "forward alone": forward,
        "stock backward alone": stock_backward,
        "backward alone": backward,
        "stock statistics": lambda: torch.batch_norm_update_stats(data, None, None, 0.1),
        "statistics": lambda: extension.reduce(told, p[0], 0, 0, rows.data_ptr(), True),
    }


def contenders(shape: tuple[int, ...], last: bool, dtype: torch.dtype, compiled: bool) -> dict[str, Call]:
    """Everything that is timed on one shape."""
    dims, c = len(shape), shape[1]
    stock, ours = STOCK[dims], OURS[dims]
    x = (torch.randn(shape) + 1).to(dtype)
    if last:
        x = x.contiguous(memory_format=LAST[dims])
    g, residual = torch.randn_like(x), torch.randn_like(x).requires_grad_()
    x.requires_grad_()
    groups = max(1, shape[0] // 8)
    mask = torch.arange(shape[0]) % 8 != 0
    mask = mask.view(-1, *[1] * (dims - 2)).expand(shape[0], *shape[2:]).contiguous()
    calls: dict[str, Call] = {
        "copy": x.detach().clone,
        "stock": step(stock(c), x, g),
        "ours": step(ours(c), x, g),
        "stock relu": step(nn.Sequential(stock(c), nn.ReLU(inplace=True)), x, g),
        "ours relu": step(ours(c, activation="relu"), x, g),
        "stock add relu": step(AddRelu(stock(c)), x, g, residual),
        "ours add relu": step(_with_residual(ours(c, activation="relu")), x, g, residual),
        "stock frozen": step(frozen(stock(c)), x, g),
        "ours frozen": step(frozen(ours(c)), x, g),
        "stock renorm": step(PeerRenorm(c), x, g),
        "ours renorm": step(ours(c, method="renorm"), x, g),
        "stock ghost": step(PeerGhost(stock(c), groups), x, g),
        "ours ghost": step(ours(c, extent=batchnorm.layers.Ghost(max(1, shape[0] // groups))), x, g),
        "ours sync of one": step(ours(c, method="sync"), x, g),
    }
    if dtype == torch.float32:
        for name, module in CURVED.items():
            calls[f"stock {name}"] = step(nn.Sequential(stock(c), module(inplace=True)), x, g)
            calls[f"ours {name}"] = step(ours(c, activation=name), x, g)
        peer, layer = PeerMasked(c), ours(c)
        calls["stock masked"] = step(lambda x: peer(x, mask), x, g)
        calls["ours masked"] = step(lambda x: layer(x, mask=mask), x, g)
        calls.update(alone(x.detach(), g))
    if compiled:
        calls["compiled stock"] = step(torch.compile(stock(c)), x, g)
        calls["compiled ours"] = step(torch.compile(ours(c)), x, g)
    return calls


def _with_residual(layer: Any) -> Callable[..., torch.Tensor]:
    return lambda x, residual: layer(x, residual=residual)


def measure(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each contender, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start = clock()
            call()
            seconds = clock() - start
            if turn >= 2:
                times[name].append(seconds)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def geometric(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def summary(rows: list[dict[str, Any]], dtype: str = "float32") -> dict[str, float]:
    """Speed over stock: geometric means over the shapes in one dtype."""
    rows = [row for row in rows if row["dtype"] == dtype]

    def ratios(theirs: str, ours: str, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> list[float]:
        times = [row["milliseconds"] for row in rows if keep(row)]
        return [t[theirs] / t[ours] for t in times if theirs in t and ours in t]

    def planes(row: dict[str, Any]) -> bool:
        return not row["last"] and len(row["shape"]) > 2

    found = {
        "step, contiguous": geometric(ratios("stock", "ours", planes)),
        "step, channels last and (N, C)": geometric(ratios("stock", "ours", lambda row: not planes(row))),
        "step, worst shape": min(ratios("stock", "ours"), default=math.nan),
        "BN + ReLU": geometric(ratios("stock relu", "ours relu")),
        "BN + add + ReLU": geometric(ratios("stock add relu", "ours add relu")),
        "kernels alone, forward": geometric(ratios("stock forward alone", "forward alone", planes)),
        "kernels alone, backward": geometric(ratios("stock backward alone", "backward alone", planes)),
        "statistics": geometric(ratios("stock statistics", "statistics")),
        "sync of one": geometric(ratios("stock", "ours sync of one")),
    }
    for name in CURVED:
        found[f"BN + {name}, contiguous"] = geometric(ratios(f"stock {name}", f"ours {name}", planes))
        others = ratios(f"stock {name}", f"ours {name}", lambda row: not planes(row))
        found[f"BN + {name}, channels last and (N, C)"] = geometric(others)
    for name in ("renorm", "ghost", "masked", "frozen"):
        found[name] = geometric(ratios(f"stock {name}", f"ours {name}"))
    compiled = ratios("compiled stock", "compiled ours")
    if compiled:
        found["compiled step"] = geometric(compiled)
    return {name: round(value, 3) for name, value in found.items() if not math.isnan(value)}


def roofline(shape: tuple[int, ...], times: dict[str, float]) -> float:
    """The step over the least it could take: x and g read, y and dx written, at the speed of the copy."""
    return round(times["ours"] / (2 * times["copy"]), 2)


def slower(rows: list[dict[str, Any]], margin: float = 0.97) -> list[str]:
    """Steps that take longer than torch's, the worst first: what torch's kernel should serve."""
    found = []
    for row in rows:
        times, layout = row["milliseconds"], "channels last" if row["last"] else "contiguous"
        for name in ("", "relu", "add relu", *CURVED, "frozen", "renorm", "ghost", "masked"):
            theirs, ours = f"stock {name}".strip(), f"ours {name}".strip()
            if theirs in times and times[theirs] < margin * times[ours]:
                what = f"{name or 'plain'} {row['dtype']} {tuple(row['shape'])} {layout}"
                found.append((times[theirs] / times[ours], what))
    return [f"{ratio:.2f} {what}" for ratio, what in sorted(found)]


def draw(result: dict[str, Any], to: Path) -> None:
    """The ratios as a picture."""
    import altair

    points = [
        {"figure": name, "times stock": value, "kind": "measured"} for name, value in result["summary"].items()
    ] + [
        {"figure": name, "times stock": least, "kind": "at least"}
        for name, (least, _) in GOALS[result["memory"]].items()
        if name in result["summary"]
    ]
    base = altair.Chart(altair.Data(values=points)).encode(
        y=altair.Y("figure:N", sort=list(result["summary"]), title=None),
        x=altair.X("times stock:Q", title="speed, times torch's"),
    )
    bars = base.transform_filter("datum.kind == 'measured'").mark_bar(color="#4c78a8")
    ticks = base.transform_filter("datum.kind == 'at least'").mark_tick(color="#e45756", thickness=3)
    (bars + ticks).properties(width=420, title=f"{result['threads']} threads, {result['clock']} time").save(to, ppi=120)


def keep(rows: list[dict[str, Any]], about: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write what is done so far."""
    result = {
        "torch": torch.__version__,
        **about,
        "allocator": allocator(),
        "instruction set": native._native.instruction_set(),
        "OMP_PROC_BIND": os.environ.get("OMP_PROC_BIND"),
        "summary": summary(rows),
        "summary in bfloat16": summary(rows, "bfloat16"),
        "slower than torch": slower(rows),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    """Measure, print, keep the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep", action="store_true", help="glibc keeps freed memory, for both sides")
    parser.add_argument("--largest", type=float, default=math.inf, help="leave out shapes of more values than this")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kernels.json"))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.keep:
        print(kernels.keep_memory())
    about = {"threads": arguments.threads, "clock": arguments.clock, "memory": "kept" if arguments.keep else "default"}
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    told = kernels.backends()["native"]
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.clock} time, {told}")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"summary": {}}
    for dtype in arguments.dtypes:
        for family, shape in SHAPES:
            if math.prod(shape) > arguments.largest:
                continue
            for last in (False, True) if len(shape) in LAST else (False,):
                rounds = arguments.rounds * (1 if math.prod(shape) > 200_000 else 10)
                times = measure(contenders(shape, last, getattr(torch, dtype), arguments.compile), rounds, clock)
                row = {
                    "family": family,
                    "shape": shape,
                    "last": last,
                    "dtype": dtype,
                    "milliseconds": {name: round(value, 4) for name, value in times.items()},
                    "step over roofline": roofline(shape, times),
                }
                rows.append(row)
                line = ", ".join(
                    f"{name} {times[f'stock {name}'.strip()] / times[f'ours {name}'.strip()]:.2f}"
                    for name in ("", "relu", "add relu", "frozen", "renorm", "ghost")
                )
                print(f"{dtype} {shape} {'channels last' if last else 'contiguous'}: step {line}", flush=True)
                result = keep(rows, about, arguments.out)
    for name, value in result["summary"].items():
        least, aim = GOALS[result["memory"]].get(name, (None, None))
        half = result["summary in bfloat16"].get(name, math.nan)
        print(f"{name:32} {value:6.2f}   at least {least}, aim {aim}; in bfloat16 {half:.2f}")
    for line in result["slower than torch"]:
        print(f"slower than torch: {line}")
    if arguments.picture:
        draw(result, arguments.picture)


if __name__ == "__main__":
    main()
