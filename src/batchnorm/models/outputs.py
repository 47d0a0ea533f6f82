"""Which tensor of what a model returned it is judged by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnorm.models.objects import all_tensors


def logits(output: Any) -> Any:
    """What an output holds as its item or attribute `logits`, else the output itself."""
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def _is_dense(t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_nested


def first_output(output: Any) -> Tensor | None:
    """The logits, where they go by that name, else the first dense floating tensor; one without axes comes last."""
    found = [t for t in all_tensors(logits(output)) if t.is_floating_point() and _is_dense(t)]
    return next((t for t in found if t.dim()), found[0] if found else None)
