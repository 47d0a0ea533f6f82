"""Every test draws the same numbers every time, whichever tests run beside it."""

import os
import random
import sys

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


@pytest.fixture(autouse=True, scope="session")
def _on_the_device_asked_for():
    """Where `make test-gpu` has new tensors and modules made."""
    wanted = os.environ.get("BATCHNORM_TEST_DEVICE")
    if wanted:
        torch.set_default_device(wanted)
    yield
    if wanted:
        torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _compile_from_scratch():
    """What one test compiles would count towards the number of recompilations that another one is allowed."""
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()
