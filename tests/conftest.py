"""Every test draws the same numbers every time, whichever tests run beside it."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
