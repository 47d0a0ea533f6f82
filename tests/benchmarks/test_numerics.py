"""The accuracy tables: the page shows what was kept, and measuring again finds it."""

import json
from pathlib import Path

import pytest
import torch

from batchnorm import kernels
from tests.loading import load

ROOT = Path(__file__).parents[2]


numerics = load(ROOT / "benchmarks" / "numerics.py")
KEPT = json.loads((ROOT / "benchmarks" / "numerics.json").read_text())["rows"]


def test_the_page_shows_the_kept_figures():
    page = (ROOT / "docs" / "numerics.md").read_text()
    for shape in (numerics.SHAPE, numerics.LARGE):
        rows = [row for row in KEPT if tuple(row["shape"]) == shape]
        assert numerics.table(rows, "y") in page, "run: python benchmarks/numerics.py, and copy its tables"
    small = [row for row in KEPT if tuple(row["shape"]) == numerics.SHAPE]
    assert numerics.table(small, "dx") in page


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    kernels.use()


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_measuring_again_finds_the_same(mean):
    kept = {(row["format"], row["layer"]): row for row in KEPT
            if row["mean"] == mean and tuple(row["shape"]) == numerics.SHAPE}  # fmt: skip
    rows = numerics.measure(numerics.SHAPE, mean)
    for row in rows:
        # Instruction sets round differently; a lost digit is a factor of ten.
        for what in ("y", "dx", "var"):
            assert row[what] < 5 * kept[row["format"], row["layer"]][what], (row["format"], row["layer"], what)
    found = {(row["format"], row["layer"]): row for row in rows}
    for form in ("contiguous", "channels_last"):
        if mean:
            assert found[form, "batchnorm, native off"]["y"] < found[form, "torch"]["y"] / 1000
        if (form, "batchnorm, native") in found:
            assert found[form, "batchnorm, native"]["y"] < 2e-6
            assert found[form, "batchnorm, native"]["dx"] < 5e-7
