"""Recalibration over processes, killed at random batches under torchrun and resumed: the statistics, to the bit.

python benchmarks/distributed/restarts.py --seeds 20 writes restarts.json beside it. Each run is torchrun's own agent
with 2 or 3 gloo processes, one of which may have no data. A random rank kills itself at a random batch, in the
second attempt once more; all are started again and go on from the files they have, some of which are older than
others. The result must be that of a run that was left alone, and no file may remain.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import batchnorm
from batchnorm.models.recalibration import resume

# Otherwise a restarted rank finds the addresses of the attempt before in the agent's store (pytorch issue 135712).
os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
BATCHES = 24
WAYS: dict[str, dict[str, Any]] = {
    "batch": {"upstream": "batch"},
    "batch, until": {"upstream": "batch", "until": 0.16},
    "layer by layer": {"upstream": "population", "memory": 1},
    "layer by layer, until": {"upstream": "population", "memory": 1, "until": 0.16},
    "meeting": {"upstream": "population"},
}


def network() -> nn.Module:
    """Four layers, float32 as models are."""
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())))


class Loader:
    """One rank's shard; counts what it gives over all its iterations, and dies at one of them."""

    def __init__(self, batches: range, dies_at: int | None) -> None:
        self.batches, self.dies_at, self.given = batches, dies_at, 0

    def __iter__(self) -> Iterator[Tensor]:
        for number in self.batches:
            if self.given == self.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.given += 1
            time.sleep(0.002)
            yield torch.randn(20, 8, generator=torch.Generator().manual_seed(number))


def shards(ranks: int, draw: random.Random) -> list[range]:
    """Unequal, and sometimes nothing."""
    cuts = [0, *sorted(draw.randrange(BATCHES + 1) for _ in range(ranks - 1)), BATCHES]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def deaths(ranks: int, passes: int, draw: random.Random) -> tuple[list[range], list[tuple[int, int]]]:
    """The shards; and who dies in the first and the second attempt, after how many batches."""
    parts = shards(ranks, draw)
    victims = [draw.choice([rank for rank, part in enumerate(parts) if part]) for _ in range(2)]
    return parts, [(rank, draw.randrange(passes * len(parts[rank]))) for rank in victims]


def worker(way: str, seed: int, ranks: int, disturbed: bool, folder: Path) -> None:
    """One rank: recalibrate, and die on the way in the first two attempts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    parts, dying = deaths(ranks, 4 if "layer" in way else 1, random.Random(f"{way} {seed}"))
    dies_at = dying[attempt][1] if disturbed and attempt < 2 and dying[attempt][0] == rank else None
    # Some ranks save after every batch, others now and then.
    resume._SHARE = random.Random(f"{seed} {rank} {attempt}").choice((0.05, 1e9))
    model = network()
    path = folder / "run.ckpt"
    if attempt:
        (folder / f"found {attempt} {rank}").write_text(str(len(list(folder.glob("run.ckpt.*")))))
    result = batchnorm.recalibrate(
        model, Loader(parts[rank], dies_at), resume=path, process_group=dist.group.WORLD, progress=False, **WAYS[way]
    )
    torch.save((model.state_dict(), result.samples, result.standard_error), folder / f"state {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(way: str, seed: int, ranks: int, disturbed: bool, folder: Path) -> None:
    """All ranks under torchrun's agent, to the end."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=4, monitor_interval=0.1, start_method="forkserver",
    )  # fmt: skip
    elastic_launch(config, worker)(way, seed, ranks, disturbed, folder)


def one(way: str, seed: int) -> dict[str, Any]:
    """The same data with kills and without."""
    ranks = random.Random(f"ranks {way} {seed}").choice((2, 3))
    row: dict[str, Any] = {"way": way, "seed": seed, "ranks": ranks}
    with tempfile.TemporaryDirectory() as disturbed, tempfile.TemporaryDirectory() as alone:
        start = time.monotonic()
        run(way, seed, ranks, True, Path(disturbed))
        row["seconds"] = round(time.monotonic() - start, 2)
        run(way, seed, ranks, False, Path(alone))
        row["restarts"] = len({path.name.split()[1] for path in Path(disturbed).glob("found *")})
        row["files_found"] = max((int(path.read_text()) for path in Path(disturbed).glob("found *")), default=0)
        row["files_left"] = len([path for path in Path(disturbed).iterdir() if "run.ckpt" in path.name])
        states = [torch.load(path, weights_only=False) for path in sorted(Path(disturbed).glob("state *.pt"))]
        expected = torch.load(Path(alone) / "state 0.pt", weights_only=False)
        row["identical"] = len(states) == ranks and all(same(state, expected) for state in states)
    return row


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Every bit of the model, the samples read and the error bar."""
    return all(torch.equal(a[0][name], b[0][name]) for name in b[0]) and repr(a[1:]) == repr(b[1:])


def main() -> None:
    """Every way with every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    rows = []
    for seed in range(options.seeds):
        rows += [one(way, seed) for way in WAYS]
        print(f"seed {seed}: {sum(row['identical'] for row in rows)} of {len(rows)} identical", flush=True)
    table = []
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        table.append({
            "way": way, "runs": len(mine), "identical": sum(row["identical"] for row in mine),
            "restarts": sum(row["restarts"] for row in mine), "files_left": sum(row["files_left"] for row in mine),
            "median_seconds": statistics.median(row["seconds"] for row in mine),
        })  # fmt: skip
    found = {"torch": torch.__version__, "load": os.getloadavg()[0], "summary": table, "runs": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
