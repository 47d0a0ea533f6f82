"""Triton's kernels on a CUDA device where there is one, else in Triton's interpreter, else not at all."""

import importlib.util
import os

import pytest
import torch

from batchnorm.kernels.triton import geometry
from tests.kernels.triton_kernels.interpreting import interpreted

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed: `make test-triton` has an environment with it"
    elif DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "there is no CUDA device, and TRITON_INTERPRET is not 1, as `make test-triton` sets it"
    else:
        return
    for item in items:
        if "tests/kernels/triton_kernels/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))


# As they are: small tensors take one launch each way. And so small that small tensors make many tiles and chunks.
SMALL = {"tile": 16, "lanes": 4, "written": 2, "programs": 8, "chunks": 4, "held": 8, "alone": 0}
SIZES = {"one launch": {}, "three launches": SMALL}


@pytest.fixture(params=SIZES)
def sizes(request, monkeypatch):
    """How the work is cut."""
    monkeypatch.setattr(geometry, "SIZES", geometry.Sizes(**SIZES[request.param]))


@pytest.fixture
def device():
    """Where the kernels run; the CPU is the interpreter's inside the test."""
    if DEVICE == "cuda":
        yield DEVICE
    else:
        with interpreted():
            yield DEVICE
