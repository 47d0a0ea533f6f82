"""Every test draws the same numbers every time, whichever tests run beside it."""

import random

import numpy as np
import pytest
import torch

# Never two of these at a time: they start ranks and threads of their own, and wait with timeouts.
TOGETHER = ("tests/distributed/", "tests/kernels/test_native_runtime.py", "tests/kernels/test_memory.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group("ranks and threads"))


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
