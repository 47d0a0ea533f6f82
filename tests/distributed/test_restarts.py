"""Recalibration whose ranks are killed under torchrun's agent and started again: the statistics of a run left alone."""

from pathlib import Path

import pytest

from tests.distributed.test_faults import load

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["batch, until", "layer by layer, until", "meeting"])
def test_killed_twice_and_restarted_gives_the_same_bits(way):
    restarts = load(ROOT / "benchmarks" / "distributed" / "restarts.py")
    row = restarts.one(way, 0)
    assert row["restarts"] == 2, row
    # Every rank has a file of its own beside the path that all were given; where all batches meet there is none.
    assert row["files_found"] == (0 if way == "meeting" else row["ranks"]), row
    assert row["identical"], row
    assert row["files_left"] == 0
