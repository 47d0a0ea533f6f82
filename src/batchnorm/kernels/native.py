"""The extension on the CPU: when it may run, and how tensors reach it.

The extension knows nothing of torch: it is given addresses and sizes, so one build serves every
version. An address means something only for a plain dense tensor that nothing is watching, which
is what `serves` decides.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from batchnorm.errors import BatchNormError, OperandError
from batchnorm.kernels.shapes import NARROW

try:
    # After torch, so that its OpenMP runtime is the one in memory; none where there was no compiler at installation.
    from batchnorm.kernels import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _native: Any = None

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_WEIGHTS = {torch.bool: 1, torch.float32: 2, torch.float64: 3}
_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}
_PLAIN = (Tensor, torch.nn.Parameter)
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_C: Any = torch._C
_PRE_DISPATCH = _C.DispatchKey.PreDispatch

_state = {"on": _native is not None}
if _native is not None and hasattr(os, "register_at_fork"):
    # A forked child hangs in an OpenMP runtime that its parent has used.
    os.register_at_fork(after_in_child=_native.serial)


def built() -> bool:
    """Whether the extension is there."""
    return _native is not None


def enabled() -> bool:
    """Whether the extension is there and not switched off."""
    return _state["on"]


def enable(on: bool) -> None:
    """Switch the native passes on, where there are any, or off."""
    _state["on"] = on and built()


def instruction_sets() -> list[str]:
    """The instruction sets this machine can run, the best last; none without the extension."""
    return [] if _native is None else _native.instruction_sets()


def unwatched() -> bool:
    """Whether nothing is to see the operations themselves: no compiler, transform, mode or forward-mode AD."""
    return (
        not torch.compiler.is_compiling()
        and _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and _C._len_torch_dispatch_stack() == 0
        and (_C._len_torch_function_stack() == 0 or _only_default_devices())
        and _C._get_tracing_state() is None
        and not _C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
    )


def _only_default_devices() -> bool:
    """Whether the modes that see functions only say where new tensors go, which these kernels say themselves."""
    modes = (_C._get_function_stack_at(i) for i in range(_C._len_torch_function_stack()))
    return all(type(mode) is DeviceContext for mode in modes)


def plain(x: Tensor) -> bool:
    """Whether a tensor's address is that of its values: exact type, dense, on the CPU, of a dtype with kernels."""
    return x.is_cpu and dense(x)


def dense(x: Tensor) -> bool:
    """As `plain`, on whatever device the tensor is."""
    return (
        type(x) in _PLAIN
        and x.dtype in DTYPES
        and x.layout is torch.strided
        and not x.is_neg()
        and not x._is_zerotensor()
        and not _functorch.is_functorch_wrapped_tensor(x)
        and not _functorch.is_legacy_batchedtensor(x)
    )


def vector(v: Tensor, size: int) -> bool:
    """As `plain`, for a channel vector that is to be read where it lies."""
    return (
        type(v) in _PLAIN
        and v.is_cpu
        and v.dtype in DTYPES
        and v.numel() == size
        and v.is_contiguous()
        and not v.is_neg()
        and not v._is_zerotensor()
    )


def affine(weight: Tensor | None, bias: Tensor | None, x: Tensor) -> bool:
    """Whether weight and bias may be read where they lie, beside this input."""
    return (weight is None or _beside(weight, x)) and (
        bias is None or (_beside(bias, x) and (weight is None or bias.dtype is weight.dtype))
    )


def _beside(v: Tensor, x: Tensor) -> bool:
    dtype = v.dtype
    fits = dtype is x.dtype or dtype in NARROW or (dtype is torch.float32 and x.dtype is not torch.float64)
    return fits and vector(v, x.shape[1])


def statistics(x: Tensor, mean: Any, var: Any, tracked: Tensor | None, skipped: Tensor | None) -> bool:
    """Whether running statistics and counters may be read and written where they lie, beside this input."""
    if mean is None or var is None or var.dtype is not mean.dtype:
        return False
    wide = mean.dtype is torch.float64
    if not (wide or mean.dtype is torch.float32) or wide is not (x.dtype is torch.float64):
        return False
    if mean.requires_grad or var.requires_grad or not (vector(mean, x.shape[1]) and vector(var, x.shape[1])):
        return False
    return (tracked is None or _counts(tracked)) and (skipped is None or _counts(skipped))


def _counts(counter: Tensor) -> bool:
    return type(counter) is Tensor and counter.dtype is torch.int64 and counter.is_cpu and counter.numel() == 1


def selects(sample_weight: Tensor) -> bool:
    """Whether a mask or weights may be read where they lie."""
    return type(sample_weight) is Tensor and sample_weight.is_cpu and sample_weight.layout is torch.strided


def serves(x: Tensor, empty: bool = False) -> bool:
    """Whether the native passes may run on this tensor; on an empty one, only where that is no matter."""
    return _state["on"] and unwatched() and plain(x) and x.dim() >= 2 and (empty or x.numel() > 0)


def arranged(x: Tensor) -> tuple[Tensor, bool]:
    """The tensor in one of the two layouts the kernels know, copied if need be; True for channels innermost."""
    if x.is_contiguous():
        return x, x.dim() == 2
    if innermost(x):
        return x, True
    if suggests_innermost(x):
        return x.contiguous(memory_format=_INNERMOST[x.dim()]), True
    return x.contiguous(), x.dim() == 2


def blank(x: Tensor) -> Tensor:
    """Room for an output or a gradient beside an arranged x, in the strides that torch would give it."""
    contiguous = x.is_contiguous()
    # One with a value a sample may be read both ways; and axes of size 1 may have any stride.
    if contiguous and (x.numel() != x.shape[0] or not suggests_innermost(x)):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=_INNERMOST.get(x.dim(), torch.preserve_format))


def suggests_innermost(x: Tensor) -> bool:
    """Whether the strides say channels_last, with gaps too, and by torch's rule where sizes of 1 say both."""
    dims, least = x.dim(), 0
    if dims not in _INNERMOST:
        return False
    sizes, strides = x.shape, x.stride()
    if strides[1] == 0:
        return False
    for axis in (1, *range(dims - 1, 1, -1), 0):
        if strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return True


def innermost(x: Tensor) -> bool:
    """Whether the tensor is dense with channels innermost."""
    layout = _INNERMOST.get(x.dim())
    return x.movedim(1, -1).is_contiguous() if layout is None else x.is_contiguous(memory_format=layout)


def laid_out(x: Tensor, last: bool) -> bool:
    """Whether `arranged` would leave this tensor as it is, and say the same of its layout."""
    return (x.is_contiguous() and last is (x.dim() == 2)) or (last and not x.is_contiguous() and innermost(x))


def like(x: Tensor, pattern: Tensor) -> Tensor:
    """X in the dtype and strides of pattern."""
    if x.dtype is pattern.dtype and x.stride() == pattern.stride():
        return x
    return torch.empty_like(pattern).copy_(x)


def data(x: Tensor, last: bool, groups: int) -> Any:
    """What the extension is told about a tensor, which may be without samples."""
    n, c, *rest = x.shape
    return _native.Data(DTYPES[x.dtype], n, c, math.prod(rest), last, groups, torch.get_num_threads())


def lies(v: Tensor | None) -> int:
    """Where a tensor's values lie at this moment, for one call: whatever owns it may move them before the next."""
    if v is None:
        return 0
    address = v.data_ptr()
    # Freed, as sharded training does between steps.
    if address == 0 and v.numel():
        raise BatchNormError(
            f"a tensor must have its values in memory; the storage of one of shape {tuple(v.shape)} is empty"
        )
    return address


def spread(weight: Tensor | None, x: Tensor) -> tuple[Tensor | None, int, int]:
    """A mask or sample weights as `(N, *)` in memory, their address and their kind."""
    if weight is None:
        return None, 0, 0
    if not weight.is_cpu:
        raise OperandError(f"mask and weights must be on the CPU, as the input is; they were on {weight.device}")
    if weight.dtype not in _WEIGHTS:
        weight = weight.to(torch.float32)
    weight = weight.expand(x.shape[0], 1, *x.shape[2:]).contiguous()
    return weight, weight.data_ptr(), _WEIGHTS[weight.dtype]


def require_channels(x: Tensor, **vectors: Tensor | None) -> None:
    """Refuse channel vectors that the kernels may not read beside x."""
    for name, v in vectors.items():
        if v is not None and not vector(v, x.shape[1]):
            legal = f"{x.shape[1]} contiguous values on the CPU for x of shape {tuple(x.shape)}"
            raise OperandError(f"{name} must be {legal}; it was {v.dtype} of shape {tuple(v.shape)} on {v.device}")
