"""A seeded part of the random cases of tests/model; `python -m tests.kernels.triton_kernels` runs any."""

import pytest
import torch

from tests.kernels.triton_kernels.random_runs import differences

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities in the interpreter


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model's layers are on the CPU")
@pytest.mark.parametrize("first", range(0, 60, 5))
def test_a_small_share(first):
    found = [line for seed in range(first, first + 5) for line in differences(seed)]
    assert not found, "\n".join(found[:10])
