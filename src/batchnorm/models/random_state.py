"""The random generators that a forward may draw from, held and put back."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def random_state(devices: Iterable[int] = ()) -> dict[str, Any]:
    """The state of torch's generators (of these CUDA devices too), Python's and numpy's."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["cuda"] = {index: torch.cuda.get_rng_state(index) for index in devices}
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put it back."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    for index, value in state["cuda"].items():
        torch.cuda.set_rng_state(value, index)
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


def same_random_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether nothing was drawn between two states."""
    if not torch.equal(a["torch"], b["torch"]) or a["python"] != b["python"]:
        return False
    if any(not torch.equal(value, b["cuda"][index]) for index, value in a["cuda"].items()):
        return False
    return "numpy" not in a or all(map(_equal, a["numpy"], b["numpy"]))


def _equal(a: Any, b: Any) -> bool:
    same = a == b
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def cuda_devices(model: nn.Module) -> list[int]:
    """The CUDA devices that a model lies on."""
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")
