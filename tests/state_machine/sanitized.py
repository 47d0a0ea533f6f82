"""A pytest plugin: the extension that BATCHNORM_SANITIZED names, built under AddressSanitizer by `make fuzz-asan`."""

import importlib.util
import os
import sys

import torch  # noqa: F401  # first, so that its OpenMP runtime is the one in memory

_spec = importlib.util.spec_from_file_location("batchnorm.kernels._native", os.environ["BATCHNORM_SANITIZED"])
if _spec is None or _spec.loader is None:
    raise ImportError(os.environ["BATCHNORM_SANITIZED"])
_extension = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_extension)
sys.modules["batchnorm.kernels._native"] = _extension
