"""Faults at random steps of training over processes: what the others say, how soon, and what remains.

python benchmarks/distributed/faults.py --seeds 20 writes faults.json beside it. Each run is torchrun's own agent
(torch.distributed.launcher) with the training of examples/distributed/train.py in 2 or 3 gloo processes.

A run must end within the timeout, and in one of these ways: the ranks of a broken run name the layer and the rank
(or are ended by the agent at once), start again from a whole checkpoint, and reach the state of the undisturbed run;
a batch that is empty or not finite on one rank leaves all ranks with the state of one process on the rest; a rank that
brings another model is refused at the first step on every rank with the difference named.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import batchnorm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "distributed"))
import train as example  # noqa: E402

STEPS, SAVE_EVERY, TIMEOUT = 8, 2, 5.0
BREAKS = ("raise", "kill", "hang", "kill while saving")
DATA = ("empty", "nan")
MISFITS = ("order", "dtype", "channels", "version")
# Otherwise a restarted rank finds the addresses of the attempt before in the agent's store (pytorch issue 135712).
os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
multiprocessing.set_forkserver_preload(["batchnorm", "torch.nn.parallel", "train", "torch.distributed.launcher.api"])


class Pair(nn.Module):
    """Two layers and a head; on the odd rank called in another order, or of another dtype or width."""

    def __init__(self, kind: str, odd: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order = (1, 0) if odd and kind == "order" else (0, 1)
        width = 10 if odd and kind == "channels" else 9
        self.widen = nn.Linear(example.FEATURES, width)
        self.layers = nn.ModuleList(
            batchnorm.BatchNorm1d(width, extent=batchnorm.layers.Sync(timeout=TIMEOUT), dtype=torch.float64)
            for _ in "ab"
        )
        self.head = nn.Linear(width, example.CLASSES)
        self.double()
        if odd and kind == "dtype":
            self.layers.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both layers in this rank's order."""
        x = self.widen(x)
        for index in self.order:
            # The layer takes inputs of its own dtype alone.
            x = self.layers[index](x.to(self.layers[index].weight.dtype))
        return self.head(x.double())


def worker(kind: str, step: int, victim: int, folder: Path) -> None:
    """One rank: train with the fault, once; say in a file what was raised here."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    mine = rank == victim and attempt == 0

    def disturb(at: int, part: example.Part) -> example.Part:
        if kind in DATA:
            return spoiled(kind, part) if at == step and rank == victim else part
        if mine and at == step:
            if kind == "raise":
                raise RuntimeError("a fault of this rank's own")
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hang":
                time.sleep(600)
        return part

    def write(state: Any, path: Path) -> None:
        if kind == "kill while saving" and attempt == 0 and state["step"] > step:
            torch.save(state, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save(state, path)

    try:
        if kind in MISFITS:
            numbers = {"batchnorm": "9.9"} if kind == "version" and rank == victim else {}
            from batchnorm.layers.processes import ranks as registration

            real = registration.version
            with mock.patch.object(registration, "version", lambda name: numbers.get(name) or real(name)):
                # Without DDP, which would compare shapes by itself.
                net = Pair(kind, rank == victim)
                net(example.shard(example.batch(0), rank, dist.get_world_size())[0])
        else:
            state = example.train(folder, STEPS, SAVE_EVERY, TIMEOUT, disturb=disturb, write=write)
            torch.save(state, folder / f"state {rank}.pt")
    except BaseException as error:
        (folder / f"said {attempt} {rank}.txt").write_text(f"{type(error).__name__}: {error}")
        # So that the agent does not end ranks that still have something to say.
        time.sleep({"raise": TIMEOUT + 3}.get(kind, 1) if rank == victim or kind in MISFITS else 0)
        raise
    dist.destroy_process_group()


def spoiled(kind: str, part: example.Part) -> example.Part:
    """A part without samples, or with a value that is not a number."""
    if kind == "empty":
        return part[0][:0], part[1][:0]
    x = part[0].clone()
    x[0, 0] = torch.nan
    return x, part[1]


def elastic(kind: str, step: int, victim: int, ranks: int, folder: Path) -> bool:
    """Run the ranks under torchrun's agent; whether they came to the end."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0 if kind in MISFITS else 4, monitor_interval=0.1, start_method="forkserver",
    )  # fmt: skip
    try:
        elastic_launch(config, worker)(kind, step, victim, folder)
    except ChildFailedError:
        return False
    return True


def expected(kind: str, step: int, victim: int, ranks: int, folder: Path) -> dict[str, torch.Tensor]:
    """The state of one process on all samples, or on those the fault leaves."""

    def disturb(at: int, whole: example.Part) -> example.Part:
        if kind not in DATA or at != step:
            return whole
        parts = [example.shard(whole, r, ranks) for r in range(ranks)]
        parts[victim] = spoiled(kind, parts[victim])
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    return example.train(folder, STEPS, SAVE_EVERY, disturb=disturb)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two states."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def one(kind: str, seed: int) -> dict[str, Any]:
    """One fault at a random step of a random rank."""
    draw = random.Random(f"{kind} {seed}")
    ranks = draw.choice((2, 3))
    victim = 0 if kind == "kill while saving" else draw.randrange(ranks)
    step = draw.randrange(1, STEPS - SAVE_EVERY)
    row: dict[str, Any] = {"kind": kind, "seed": seed, "ranks": ranks, "victim": victim, "step": step}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as whole:
        folder = Path(name)
        start = time.monotonic()
        row["finished"] = elastic(kind, step, victim, ranks, folder)
        row["seconds"] = round(time.monotonic() - start, 2)
        said = {path.stem.split()[-1]: path.read_text() for path in sorted(folder.glob("said 0 *.txt"))}
        row["said"] = {rank: text[:400] for rank, text in said.items()}
        others = [text for rank, text in said.items() if int(rank) != victim]
        if kind in MISFITS:
            label = "layer: " if kind == "order" else f"{kind}: "
            row["refused_everywhere"] = len(said) == ranks and all(label in text for text in said.values())
            return row | {"ok": not row["finished"] and row["refused_everywhere"]}
        if kind in BREAKS:
            row["others_name_place_and_rank"] = sum("must reach" in t and f"rank {victim}" in t for t in others)
        states = [torch.load(path, weights_only=True) for path in sorted(folder.glob("state *.pt"))]
        left = [path.name for path in folder.iterdir() if path.name.startswith(".checkpoint")]
        torch.load(folder / "checkpoint.pt", weights_only=True)
        row["temporary_files_left"] = len(left)
        single = expected(kind, step, victim, ranks, Path(whole))
        row["ranks_apart"] = max(apart(states[0], state) for state in states)
        row["from_one_process"] = apart(states[0], single)
        if kind in BREAKS:
            row["from_undisturbed"] = apart(states[0], undisturbed(ranks))
        near = row["from_one_process"] < 1e-9 and row["ranks_apart"] == 0 and row.get("from_undisturbed", 0) < 1e-9
        return row | {"ok": row["finished"] and len(states) == ranks and near}


_undisturbed: dict[int, dict[str, torch.Tensor]] = {}


def undisturbed(ranks: int) -> dict[str, torch.Tensor]:
    """The state after a run of these ranks without a fault."""
    if ranks not in _undisturbed:
        with tempfile.TemporaryDirectory() as folder:
            elastic("none", -1, -1, ranks, Path(folder))
            _undisturbed[ranks] = torch.load(Path(folder) / "state 0.pt", weights_only=True)
    return _undisturbed[ranks]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind of fault."""
    table = []
    for kind in (*BREAKS, *DATA, *MISFITS):
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            line: dict[str, Any] = {"kind": kind, "runs": len(mine), "ok": sum(row["ok"] for row in mine)}
            seconds = [row["seconds"] for row in mine]
            line |= {"median_seconds": statistics.median(seconds), "most_seconds": max(seconds)}
            if kind == "hang":
                line["named"] = sum(row["others_name_place_and_rank"] == row["ranks"] - 1 for row in mine)
            for key in ("ranks_apart", "from_one_process", "from_undisturbed"):
                values = [row[key] for row in mine if key in row]
                line |= {key: max(values)} if values else {}
            line["bitwise_as_undisturbed"] = sum(row.get("from_undisturbed") == 0 for row in mine)
            table.append(line)
    return table


def run(kinds: tuple[str, ...], seeds: int, out: Path | None = None) -> dict[str, Any]:
    """Every kind of fault with every seed; written down after each seed, and gone on with where a file is there."""
    logging.disable(logging.ERROR)
    found: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    rows: list[dict[str, Any]] = found.get("runs", [])
    for seed in range(len(rows) // len(kinds), seeds):
        rows += [one(kind, seed) for kind in kinds]
        found = {
            "torch": torch.__version__, "timeout": TIMEOUT, "steps": STEPS, "cores": os.cpu_count(),
            "load": os.getloadavg()[0], "summary": summary(rows), "runs": rows,
        }  # fmt: skip
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"seed {seed}: {sum(row['ok'] for row in rows)} of {len(rows)} as expected", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=(*BREAKS, *DATA, *MISFITS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    print(json.dumps(run(tuple(options.kinds), options.seeds, options.out)["summary"], indent=1))
