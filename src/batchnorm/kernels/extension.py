"""The compiled extension, or None where no compiler was found when the package was installed."""

from __future__ import annotations

import os
from typing import Any

# First, so that its OpenMP runtime is the one in memory.
import torch

try:
    from batchnorm.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native: Any = None

extension: Any = _native
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

if extension is not None and hasattr(os, "register_at_fork"):
    # A forked child hangs in an OpenMP runtime that its parent has used.
    os.register_at_fork(after_in_child=extension.serial)
