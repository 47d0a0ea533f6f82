"""What shared statistics cost: bytes and messages per layer and step, seconds per step, and a model of both.

python benchmarks/distributed/cost.py writes cost.json beside it. Three schemes send over gloo on the loopback device,
with the same tensors in the same order as: this package's layers (the layers themselves run), torch's SyncBatchNorm
(all_gather of mean, invstd and count, all_reduce backward), and detectron2's NaiveSyncBatchNorm with stats_mode "N"
(an all_reduce of 2 C + 1 forward, and its gradient's backward). The last two are replayed, since SyncBatchNorm
refuses the CPU. Seconds are taken in turn, medians of rounds. The layers also run with a sum that crosses nothing
(their work alone), and one message is taken apart: see `anatomy`. Bytes are those that the kernel counted on the
loopback device, headers included, and other programs' too unless it runs in a network of its own:

    unshare -n sh -c 'ip link set lo up; GLOO_SOCKET_IFNAME=lo python benchmarks/distributed/cost.py'

Beside other programs, times are those of the scheduler: a process that computes a little and waits a little is put off
for milliseconds. `chrt -r 1` before the command (as root) lets its processes go first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import batchnorm
from batchnorm.layers.processes import ranks as crossing

multiprocessing.set_forkserver_preload(["batchnorm", "torch.nn.parallel"])
Step = Callable[[], object]


def ours(channels: list[int], rows: int) -> Step:
    """The layers one after the other, forward and backward, on a batch that costs next to nothing."""
    layers = [batchnorm.BatchNorm1d(c, extent=batchnorm.layers.Sync(timeout=60)) for c in channels]
    inputs = [torch.randn(rows, c, requires_grad=True) for c in channels]

    def step() -> None:
        outputs = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
        for x, y in zip(reversed(inputs), reversed(outputs), strict=True):
            x.grad = None
            y.sum().backward()

    return step


def together(channels: list[int], rows: int) -> Step:
    """The layers as parallel branches, forward and backward in one message each."""
    layers = [batchnorm.BatchNorm1d(c, extent=batchnorm.layers.Sync(timeout=60)) for c in channels]
    inputs = [torch.randn(rows, c, requires_grad=True) for c in channels]

    def step() -> None:
        for x in inputs:
            x.grad = None
        outputs = batchnorm.forward_together(layers, inputs)
        torch.autograd.backward([y.sum() for y in outputs])

    return step


class _Crossed:
    def wait(self, timeout: Any = None) -> None:
        """It is there already."""


def work_alone(channels: list[int], rows: int) -> Step:
    """The layers with a sum over ranks that stays here: what they compute around their messages."""
    ranks, step = dist.get_world_size(), ours(channels, rows)
    step()

    def stays(message: torch.Tensor, **options: Any) -> _Crossed:
        message.mul_(ranks)
        return _Crossed()

    def alone() -> None:
        with mock.patch.object(crossing.dist, "all_reduce", stays):
            step()

    return alone


class Watched:
    """A stand-in for all_reduce that notes when this rank asks for a sum and when it has it."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real, self.times = real, list[tuple[float, float]]()

    def __call__(self, message: torch.Tensor, **options: Any) -> Any:
        """Send, and watch the wait as well."""
        asked = time.perf_counter()
        work = self.real(message, **options | {"async_op": True})
        outer = self

        class Work:
            def wait(self, *timeout: Any) -> None:
                work.wait(*timeout)
                outer.times.append((asked, time.perf_counter()))

        if options.get("async_op"):
            return Work()
        return Work().wait()


def anatomy(step: Step, rounds: int, messages: int) -> dict[str, float]:
    """Medians over messages, in microseconds, of what one costs in its place; the clock is that of the machine.

    work: from one sum to asking for the next. apart: from the first rank that asks to the last. message: from then
    until the last rank has its sum. cycle: from asking to asking, all of it.
    """
    watched = Watched(dist.all_reduce)
    with mock.patch.object(crossing.dist, "all_reduce", watched):
        for _ in range(rounds):
            dist.barrier()
            step()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, watched.times)
    asked = torch.tensor([[t[0] for t in times] for times in everyone], dtype=torch.float64)
    had = torch.tensor([[t[1] for t in times] for times in everyone], dtype=torch.float64)
    inside = torch.arange(asked.shape[1] - 1) % messages != messages - 1
    found = {
        "work": (asked[:, 1:] - had[:, :-1])[:, inside], "apart": asked.amax(0) - asked.amin(0),
        "message": had.amax(0) - asked.amax(0), "cycle": (asked[:, 1:] - asked[:, :-1])[:, inside],
    }  # fmt: skip
    return {name: round(float(values.median()) * 1e6, 1) for name, values in found.items()}


def plain(channels: list[int], rows: int) -> Step:
    """The same layers without anything shared: what the passes themselves take."""
    layers = [batchnorm.BatchNorm1d(c) for c in channels]
    inputs = [torch.randn(rows, c, requires_grad=True) for c in channels]

    def step() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            x.grad = None
            layer(x).sum().backward()

    return step


def sums_only(channels: list[int], rows: int) -> Step:
    """This package's messages without the layers around them: float64, 2 C + 5, forward and backward."""
    messages = [torch.zeros(2 * c + 5, dtype=torch.float64) for c in channels]

    def step() -> None:
        for _ in ("forward", "backward"):
            for message in messages:
                dist.all_reduce(message)

    return step


def gathers(channels: list[int], rows: int) -> Step:
    """The messages of torch.nn.SyncBatchNorm: float32, all_gather of 2 C + 1, all_reduce of 2 C."""
    ranks = dist.get_world_size()
    sent = [torch.zeros(2 * c + 1) for c in channels]
    received = [[torch.zeros(2 * c + 1) for _ in range(ranks)] for c in channels]
    back = [torch.zeros(2 * c) for c in channels]

    def step() -> None:
        for mine, everyone in zip(sent, received, strict=True):
            dist.all_gather(everyone, mine)
        for message in back:
            dist.all_reduce(message)

    return step


def naive(channels: list[int], rows: int) -> Step:
    """The messages of detectron2's NaiveSyncBatchNorm: float32, all_reduce of 2 C + 1 both ways."""
    messages = [torch.zeros(2 * c + 1) for c in channels]

    def step() -> None:
        for _ in ("forward", "backward"):
            for message in messages:
                dist.all_reduce(message)

    return step


def one_message(channels: list[int], rows: int) -> Step:
    """The messages of layers that go together."""
    message = torch.zeros(sum(2 * c + 5 for c in channels), dtype=torch.float64)

    def step() -> None:
        for _ in ("forward", "backward"):
            dist.all_reduce(message)

    return step


SCHEMES = {
    "batchnorm": ours, "its messages alone": sums_only, "SyncBatchNorm's messages": gathers,
    "detectron2's messages": naive, "its work alone": work_alone,
    "together": together, "one message for all layers": one_message, "nothing shared": plain,
}  # fmt: skip


def loopback() -> int:
    """Bytes that this machine has sent over the loopback device, in this process's network."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    return 0


def process(rank: int, ranks: int, folder: str, channels: list[int], rounds: int) -> None:
    """Time every scheme in turn on this rank."""
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    steps = {name: make(channels, 2) for name, make in SCHEMES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name, step in steps.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    parts = {
        name: anatomy(steps[name], rounds, 2 * len(channels)) if ranks > 1 else {}
        for name in ("batchnorm", "its messages alone")
    }
    repeats, bytes_sent = 3, {}
    for name, step in steps.items():
        counts = []
        # Other programs use the loopback device too: the least of the counts is nearest.
        for _ in range(2):
            dist.barrier()
            before = loopback()
            for _ in range(repeats):
                step()
            dist.barrier()
            counts.append((loopback() - before) / repeats)
        bytes_sent[name] = min(counts)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps([
            {name: statistics.median(values) for name, values in seconds.items()}, bytes_sent, parts,
        ]))  # fmt: skip
    dist.barrier()
    dist.destroy_process_group()


def measure(ranks: int, channels: list[int], rounds: int) -> dict[str, Any]:
    """Seconds and bytes of a step of these layers over so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            process, (ranks, folder, channels, rounds), nprocs=ranks, start_method="forkserver"
        )  # fmt: skip
        seconds, sent, parts = json.loads(Path(folder, "found.json").read_text())
    layers = len(channels)
    return {
        "ranks": ranks, "layers": layers, "channels": channels[0],
        "milliseconds_per_layer": {name: round(1e3 * value / layers, 4) for name, value in seconds.items()},
        "microseconds_per_message": parts,
        "loopback_bytes_per_layer": {name: round(value / layers) for name, value in sent.items()},
        "model_bytes_per_layer": {
            name: model_bytes(name, ranks, channels[0])
            for name in ("batchnorm", "its messages alone", "SyncBatchNorm's messages", "detectron2's messages")
        },
    }  # fmt: skip


def model_bytes(scheme: str, ranks: int, channels: int) -> int:
    """Bytes that all ranks together send for a layer's step, headers left out.

    A ring's all_reduce of m bytes sends 2 (p - 1) / p m from each of p ranks; an all_gather of m from each sends
    (p - 1) m from each.
    """
    forward = {"batchnorm": 8 * (2 * channels + 5), "its messages alone": 8 * (2 * channels + 5)}
    if scheme in forward:
        return round(2 * 2 * (ranks - 1) * forward[scheme])
    small, back = 4 * (2 * channels + 1), 4 * 2 * channels
    if scheme.startswith("SyncBatchNorm"):
        return ranks * (ranks - 1) * small + 2 * (ranks - 1) * back
    return 2 * 2 * (ranks - 1) * small


def units(ranks: int, cores: int) -> float:
    """Hops of a ring's all_reduce, one after the other; where processes share cores each hop waits for its turn."""
    return 2 * (ranks - 1) * max(1.0, ranks / cores)


def fitted(rows: list[dict[str, Any]], cores: int) -> dict[str, Any]:
    """A message takes so long a hop and so long a byte; a layer's step two messages, and the work around each.

    The two constants are fitted to the messages alone, relative errors counting. What the layers' messages take, and
    what a whole cycle of work and message takes, is predicted from them: fitted to nothing.
    """
    shared = [row for row in rows if row["ranks"] > 1]
    alone = [row["microseconds_per_message"]["its messages alone"]["message"] for row in shared]
    times = torch.tensor(alone, dtype=torch.float64)
    hops = torch.tensor([units(row["ranks"], cores) for row in shared], dtype=torch.float64)
    sent = torch.tensor([8 * (2 * row["channels"] + 5) / row["ranks"] for row in shared], dtype=torch.float64) * hops
    a = torch.stack((hops, sent), 1) / times[:, None]
    found = torch.linalg.lstsq(a, torch.ones_like(times)[:, None]).solution[:, 0]
    if float(found.min()) < 0:
        # A price of a byte that is not to be seen beside that of a hop.
        found = torch.tensor([float(a[:, 0].sum() / a[:, 0].square().sum()), 0.0], dtype=torch.float64)
    message = a @ found * times
    layers = [row["microseconds_per_message"]["batchnorm"] for row in shared]
    work = [
        1e3 / 2 * row["milliseconds_per_layer"]["its work alone"] * max(1.0, row["ranks"] / cores) for row in shared
    ]
    predicted = [float(m) + w for m, w in zip(message, work, strict=True)]
    cycles = [row["cycle"] for row in layers]
    # Two messages of 2 p (p - 1) sends each.
    sends = [4 * row["ranks"] * (row["ranks"] - 1) for row in shared]
    bytes_seen = [row["loopback_bytes_per_layer"]["batchnorm"] for row in shared]
    payload = [row["model_bytes_per_layer"]["batchnorm"] for row in shared]
    around = statistics.median((m - p) / n for m, p, n in zip(bytes_seen, payload, sends, strict=True))
    off = [(p + around * n) / m - 1 for m, p, n in zip(bytes_seen, payload, sends, strict=True)]
    return {
        "bytes_around_a_send": around, "bytes_largest_relative_error": max(map(abs, off)),
        "microseconds_per_hop": float(found[0]), "nanoseconds_per_byte_and_hop": float(found[1]) * 1e3,
        "message_error": _errors(message.tolist(), alone),
        "message_of_layers_error": _errors(message.tolist(), [row["message"] for row in layers]),
        "cycle_error": _errors(predicted, cycles),
    }  # fmt: skip


def _errors(predicted: list[float], measured: list[float]) -> dict[str, float]:
    off = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return {"median": round(statistics.median(off), 3), "largest": round(max(off), 3)}


# Networks that are not here: hop latency in seconds and bytes a second, round figures of their kind.
NETWORKS = {"25 Gbit/s Ethernet": (20e-6, 3e9), "100 Gbit/s with RDMA": (3e-6, 12e9)}


def beyond(channels: int = 256, layers: int = 50) -> list[dict[str, Any]]:
    """What the model says of more ranks: milliseconds a step of so many layers, if nothing overlaps."""
    rows = []
    for name, (hop, speed) in NETWORKS.items():
        for p in (8, 64, 512):
            ring, tree = 2 * (p - 1), 2 * (p - 1).bit_length()
            mine, small, back = 8 * (2 * channels + 5), 4 * (2 * channels + 1), 8 * channels
            share = 2 * (p - 1) / p

            def total(*messages: tuple[float, float], hop: float = hop, speed: float = speed) -> float:
                return round(1e3 * layers * sum(hops * hop + sent / speed for hops, sent in messages), 2)

            rows.append({
                "network": name, "ranks": p,
                "batchnorm, ring": total((ring, share * mine), (ring, share * mine)),
                "batchnorm, tree": total((tree, 2 * mine), (tree, 2 * mine)),
                "SyncBatchNorm, ring": total((p - 1, (p - 1) * small), (ring, share * back)),
                "SyncBatchNorm, tree backward": total((p - 1, (p - 1) * small), (tree, 2 * back)),
                "received_kilobytes_per_layer": {
                    "batchnorm": round(2 * share * mine / 1e3, 1),
                    "SyncBatchNorm": round(((p - 1) * small + share * back) / 1e3, 1),
                },
            })  # fmt: skip
    return rows


def main() -> None:
    """Measure, fit, extrapolate, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="*", default=(1, 2, 4, 8))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        for channels in ([width] * options.layers for width in (64, 512, 2048)):
            rows.append(measure(ranks, channels, options.rounds))
            print(json.dumps(rows[-1]), flush=True)
    found = {
        "torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0], "rounds": options.rounds,
        "first_in_line": os.sched_getscheduler(0) == os.SCHED_RR,
        "note": "more processes than cores are oversubscribed: their times are an upper bound", "measured": rows,
        "model": fitted(rows, os.cpu_count() or 1), "beyond": beyond(),
    }  # fmt: skip
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
