"""Killed at random points 50 times and resumed: the same bits as a run that was left alone, never a corrupt file.

`python benchmarks/recalibrate/kills.py [kills]`
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import keep
from torch import nn

import batchnorm

# Forked before torch has started any thread: importing torch anew for every kill would take most of the time.
FORK = multiprocessing.get_context("fork")


class Loader:
    """The same batches every time, slowly."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        for _ in range(40):
            time.sleep(self.pause)
            yield torch.randn(16, 8, generator=generator)


def run(upstream: str, path: str | None, pause: float) -> list[torch.Tensor]:
    """The statistics and error bars of one run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())))
    result = batchnorm.recalibrate(model, Loader(pause), upstream=upstream, resume=path, memory=1)
    errors = [torch.tensor(row.standard_error) for row in result.layers.values()]
    return [*(v.clone() for v in model.state_dict().values()), *errors]


def main() -> None:
    torch.set_num_threads(1)
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    rng = random.Random(0)
    rows = []
    for upstream in ("batch", "population"):
        expected = run(upstream, None, 0)
        done, runs, same, corrupt, killed_while_writing = 0, 0, 0, 0, 0
        while done < kills // 2:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run.ckpt"
                # Several kills before each run that is allowed to end.
                for _ in range(min(5, kills // 2 - done)):
                    process = FORK.Process(target=run, args=(upstream, str(path), 0.02))
                    before = path.stat().st_mtime_ns if path.exists() else 0
                    process.start()
                    while process.is_alive() and not (path.exists() and path.stat().st_mtime_ns != before):
                        time.sleep(0.001)
                    time.sleep(rng.random() * 0.6)
                    process.kill()
                    process.join()
                    if process.exitcode == 0:
                        break  # it came to its end sooner, and its file has served
                    done += 1
                    killed_while_writing += any(p != path for p in Path(folder).iterdir())
                    try:
                        torch.load(path, weights_only=True)
                    except Exception:
                        corrupt += 1
                runs += 1
                got = run(upstream, str(path), 0)
                same += all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
                corrupt += bool(list(Path(folder).iterdir()))
        row = {"upstream": upstream, "kills": done, "resumed to the end": runs, "identical to the bit": same}
        rows.append({**row, "corrupt or left over files": corrupt, "killed while writing": killed_while_writing})
        print(rows[-1], flush=True)
    keep("kills", {"rows": rows})


if __name__ == "__main__":
    main()
