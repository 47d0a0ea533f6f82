"""Whether Triton's kernels may serve a tensor, and why not; nothing of Triton is imported before it may."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch
from torch import Tensor

from batchnorm.errors import BatchNormError
from batchnorm.kernels import native

# The compute capability from which on Triton's code runs.
_OLDEST = (7, 0)

# Read where a call costs too much: whether the kernels are on, and whether the interpreter serves the CPU.
SWITCHES = {"on": True, "interpreted": False}


def enable(on: bool) -> None:
    """Switch the kernels on or off; the interpreter with them."""
    SWITCHES["on"], SWITCHES["interpreted"] = on, False


def interpret(on: bool) -> None:
    """Serve tensors on the CPU by Triton's interpreter, for tests: it is thousands of times slower than a device."""
    if on and os.environ.get("TRITON_INTERPRET") != "1":
        raise BatchNormError("TRITON_INTERPRET must be 1 before Triton is imported; it was not")
    SWITCHES["interpreted"] = on


def interpreted() -> bool:
    """Whether the interpreter serves the CPU."""
    return SWITCHES["interpreted"]


def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=64)
def without(device: torch.device) -> str | None:
    """Why the kernels do not serve a device, or None."""
    if device.type != "cuda":
        return f"Triton's kernels serve CUDA devices, not {device.type}"
    if not _installed():
        return "Triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST:
        return f"Triton's kernels need compute capability 7.0; {torch.cuda.get_device_name(device)} has less"
    return None


def declined(x: Tensor) -> str | None:
    """Why the kernels do not serve a tensor, or None."""
    if not SWITCHES["on"]:
        return "Triton's kernels are switched off"
    if not (SWITCHES["interpreted"] and x.is_cpu):
        why = without(x.device)
        if why is not None:
            return why
    if not (native.unwatched() and native.dense(x) and x.dim() >= 2 and x.numel() > 0):
        return "Triton's kernels serve plain dense tensors outside compilers and transforms"
    return None


def serves(x: Tensor) -> bool:
    """Whether the passes may run on this tensor."""
    return (x.is_cuda or SWITCHES["interpreted"]) and declined(x) is None


def state() -> str:
    """One line about the kernels on this machine."""
    if not SWITCHES["on"]:
        return "switched off by use('reference')"
    if SWITCHES["interpreted"]:
        return "in use on the CPU by Triton's interpreter, for tests"
    if not torch.cuda.is_available():
        return "not in use: torch finds no CUDA device"
    found = {i: without(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    served = [torch.cuda.get_device_name(i) for i, why in found.items() if why is None]
    return f"in use on {', '.join(served)}" if served else f"not in use: {found[0]}"
