"""One tensor: the four passes over the data, and which backend serves a call.

Every method of batch normalization is `reduce`, `apply`, `backward_reduce` and `backward_apply`
with different arithmetic on channel vectors in between. Tensors here are `(N, C, *)`; channel
vectors are `(groups, C)`, in float64 wherever the device has it.
"""

from batchnorm.kernels import memory, native
from batchnorm.kernels.allocator import keep_memory as keep_memory
from batchnorm.kernels.choice import backends as backends
from batchnorm.kernels.choice import from_environment
from batchnorm.kernels.choice import use as use
from batchnorm.kernels.fused import batch_norm_train as batch_norm_train
from batchnorm.kernels.registry import Passes as Passes
from batchnorm.kernels.registry import register as register
from batchnorm.kernels.registry import select as select
from batchnorm.kernels.shapes import RawMoments as RawMoments
from batchnorm.kernels.shapes import compute_dtype as compute_dtype
from batchnorm.kernels.shapes import wide_dtype as wide_dtype
from batchnorm.kernels.verify import Parity as Parity
from batchnorm.kernels.verify import verify as verify

if native.built():
    register(native.PASSES)
from_environment()
memory.from_environment()
