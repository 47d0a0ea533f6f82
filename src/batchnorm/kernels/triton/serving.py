"""Whether Triton's kernels may serve a tensor, and why not; nothing of Triton is imported before it may."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_PLAIN = (Tensor, torch.nn.Parameter)
# The compute capability from which on Triton's code runs.
_OLDEST = (7, 0)
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]

_state = {"on": True, "interpreted": False}


def installed() -> bool:
    """Whether there is a Triton."""
    return importlib.util.find_spec("triton") is not None


def enable(on: bool) -> None:
    """Switch the kernels on or off; the interpreter with them."""
    _state["on"], _state["interpreted"] = on, False


def interpret(on: bool) -> None:
    """Serve tensors on the CPU by Triton's interpreter, for tests: it is thousands of times slower than a device."""
    if on and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET must be 1 before triton is imported")
    _state["interpreted"] = on


def interpreted() -> bool:
    """Whether the interpreter serves the CPU."""
    return _state["interpreted"]


def enabled() -> bool:
    """Whether the kernels are not switched off."""
    return _state["on"]


@lru_cache(maxsize=64)
def declined(device: torch.device) -> str | None:
    """Why the kernels do not serve a device, or None."""
    if device.type != "cuda":
        return f"Triton's kernels serve CUDA devices, not {device.type}"
    if not installed():
        return "Triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST:
        return f"Triton's kernels need compute capability 7.0; {torch.cuda.get_device_name(device)} is older"
    return None


def on_device(x: Tensor) -> bool:
    """Whether they serve tensors where x lies."""
    return _state["on"] and (_state["interpreted"] if x.is_cpu else x.is_cuda and declined(x.device) is None)


def plain(x: Tensor) -> bool:
    """Whether a tensor's values lie where it says: exact type, dense, of a dtype with kernels."""
    return (
        type(x) in _PLAIN
        and x.dtype in _DTYPES
        and x.layout is torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
        and not _functorch.is_functorch_wrapped_tensor(x)
        and not _functorch.is_legacy_batchedtensor(x)
    )
