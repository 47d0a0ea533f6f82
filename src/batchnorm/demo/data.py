"""The digits that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Digits(NamedTuple):
    """Images `(N, 1, 8, 8)` in [0, 1] and labels `(N,)`, split for training and testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_digits(test_size: int = 500) -> Digits:
    """The 1797 embedded digits in a fixed random split."""
    with files("batchnorm.demo").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        x = torch.from_numpy(arrays["images"]).float()[:, None] / 16
        y = torch.from_numpy(arrays["labels"]).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order[:test_size], order[test_size:]
    return Digits(x[train], y[train], x[test], y[test])
