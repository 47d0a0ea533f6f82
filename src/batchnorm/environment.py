"""What a report of a bug should say about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from batchnorm import kernels
from batchnorm.kernels.allocator import allocator

_BESIDE = ("torch", "numpy", "safetensors", "onnx", "keras", "flax", "equinox", "lightning", "transformers", "timm")
_VARIABLES = (
    "BATCHNORM_BACKEND", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "LD_PRELOAD", "GLIBC_TUNABLES",
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Versions, processor, kernels and settings, for a report of a bug.

    Example:
        >>> from batchnorm.environment import environment
        >>> {"batchnorm", "torch", "native kernels"} <= set(environment())
        True

    Libraries that are not installed and variables that are not set are left out.
    """
    told = {
        "batchnorm": _version("batchnorm") or "not installed, run from source",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "native kernels": kernels.backends()["native"],
        "allocator": allocator(),
        "threads": str(torch.get_num_threads()),
        "cuda": torch.version.cuda or "none in this torch",
    }
    told |= {name: version for name in _BESIDE if (version := _version(name))}
    return told | {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
