"""Ranks that raise, die, hang, or bring another batch or model, under torchrun's agent; and the example itself."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def load(path):
    # By its name, as the processes it starts will.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kinds", [("raise", "kill"), ("hang", "kill while saving"), ("empty", "nan")])
def test_a_fault_changes_nothing_in_the_end(kinds, seed):
    faults = load(ROOT / "benchmarks" / "distributed" / "faults.py")
    for kind in kinds:
        row = faults.one(kind, seed)
        assert row["finished"], row
        assert row["ranks_apart"] == 0
        assert row["from_one_process"] < 1e-9
        assert row.get("from_undisturbed", 0) < 1e-9
        if kind == "hang":
            assert row["others_name_place_and_rank"] == row["ranks"] - 1, row


@pytest.mark.slow
def test_a_rank_that_hangs_before_ddp_compares_its_buckets_is_named():
    faults = load(ROOT / "benchmarks" / "distributed" / "faults.py")
    row = faults.one("hang", 2)
    assert (row["step"], row["ranks"]) == (1, 3)
    assert row["others_name_place_and_rank"] == 2, row
    assert all("the forward of DistributedDataParallel" in row["said"][rank] for rank in ("0", "1"))


@pytest.mark.slow
def test_another_model_on_one_rank_is_refused_on_all():
    faults = load(ROOT / "benchmarks" / "distributed" / "faults.py")
    for kind in faults.MISFITS:
        row = faults.one(kind, 0)
        assert row["refused_everywhere"], row


def run(command, environment):
    """Run it; again where torch's Gloo thread outlived the interpreter, which happens to torch's own layers too."""
    for _ in range(8):
        done = subprocess.run(command, env=environment, timeout=200, capture_output=True, text=True)
        if done.returncode == 0 or "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_example_runs_under_torchrun_and_goes_on_where_it_was(tmp_path):
    script = ROOT / "examples" / "distributed" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for steps in ("4", "8"):
        run([*command, "--folder", str(tmp_path), "--steps", steps], environment)
    held = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert held["step"] == 8
    example = load(script)
    (tmp_path / "alone").mkdir()
    alone = example.train(tmp_path / "alone", 8)
    for name, value in alone.items():
        assert torch.allclose(held["model"][name].double(), value.double(), rtol=1e-9), name
