"""One tensor: the four passes over the data, and which backend serves a call.

Every method of batch normalization is `reduce`, `apply`, `backward_reduce` and `backward_apply`
with different arithmetic on channel vectors in between. Tensors here are `(N, C, *)`; channel
vectors are `(groups, C)`, in float64 wherever the device has it.
"""

import sys

from batchnorm.kernels import memory, native, parity, passes, triton
from batchnorm.kernels.allocator import keep_memory
from batchnorm.kernels.choice import backends, from_environment, use
from batchnorm.kernels.fused import batch_norm_train
from batchnorm.kernels.parity import Parity, verify
from batchnorm.kernels.registry import Passes, register, select
from batchnorm.kernels.shapes import RawMoments, compute_dtype, wide_dtype

__all__ = [
    "Parity",
    "Passes",
    "RawMoments",
    "backends",
    "batch_norm_train",
    "compute_dtype",
    "keep_memory",
    "register",
    "select",
    "use",
    "verify",
    "wide_dtype",
]

# Pickles of version 0.1.0 name these modules.
sys.modules["batchnorm.kernels.verify"] = parity
if native.built():
    register(passes.PASSES)
register(triton.PASSES)
from_environment()
memory.from_environment()
