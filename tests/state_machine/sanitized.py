"""A pytest plugin: use the extension that BATCHNORM_SANITIZED names, built under AddressSanitizer (`make fuzz-asan`)."""

import importlib.util
import os
import sys

import torch

_spec = importlib.util.spec_from_file_location("batchnorm.kernels._native", os.environ["BATCHNORM_SANITIZED"])
assert torch and _spec and _spec.loader  # torch first: its OpenMP runtime is the one in memory
_extension = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_extension)
sys.modules["batchnorm.kernels._native"] = _extension
