"""A few gloo processes on this machine: run a function in each, and bring back what they return."""

import os
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.processes import CONTEXT


def run(function, ranks, *arguments, timeout=60.0):
    """Call `function(rank, ranks, *arguments)` in every process; a list of results by rank."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (function, ranks, folder, timeout, arguments)
        mp.start_processes(_process, arguments, nprocs=ranks, join=True, start_method=CONTEXT.get_start_method())
        return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(ranks)]


def _process(rank, function, ranks, folder, timeout, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))
    try:
        result = function(rank, ranks, *arguments)
        torch.save(result, os.path.join(folder, f"{rank}.pt"))
        # Rank 0 may hold what the others still talk to; a rank that gave up is not waited for.
        store.set(f"done {rank}", "")
        store.wait([f"done {other}" for other in range(ranks)])
    finally:
        dist.destroy_process_group()
