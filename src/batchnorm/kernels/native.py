"""The four passes in C++, on the CPU: when they may run, and how tensors reach them.

The extension knows nothing of torch: it is given addresses and sizes, so one build serves every
version. An address means something only for a plain dense tensor that nothing is watching, which
is what `serves` decides.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from batchnorm.errors import BatchNormError, OperandError
from batchnorm.kernels import reference
from batchnorm.kernels.extension import DTYPES
from batchnorm.kernels.extension import extension as _native
from batchnorm.kernels.registry import Passes
from batchnorm.kernels.shapes import RawMoments

_WEIGHTS = {torch.bool: 1, torch.float32: 2, torch.float64: 3}
_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}
_PLAIN = (Tensor, torch.nn.Parameter)
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_C: Any = torch._C

_state = {"on": _native is not None}


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


def instruction_set() -> str:
    """The one in use."""
    return _native.instruction_set()


def choose(instruction_set: str) -> None:
    """Run with another one of `instruction_sets`."""
    _native.choose(instruction_set)


def unwatched() -> bool:
    """Whether nothing is to see the operations themselves: no compiler, transform, mode or forward-mode AD."""
    return (
        not torch.compiler.is_compiling()
        and _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and _C._len_torch_dispatch_stack() == 0
        and (_C._len_torch_function_stack() == 0 or _only_default_devices())
        and _C._get_tracing_state() is None
        and torch._ops._len_torch_dispatch_stack_pre_dispatch() == 0
    )


def _only_default_devices() -> bool:
    """Whether the modes that see functions only say where new tensors go, which these kernels say themselves."""
    modes = (_C._get_function_stack_at(i) for i in range(_C._len_torch_function_stack()))
    return all(type(mode) is DeviceContext for mode in modes)


def plain(x: Tensor) -> bool:
    """Whether a tensor's address is that of its values: exact type, dense, on the CPU, of a dtype with kernels."""
    return (
        type(x) in _PLAIN
        and x.is_cpu
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


def serves(x: Tensor) -> bool:
    """Whether the native passes may run on this tensor."""
    return _state["on"] and unwatched() and plain(x) and x.dim() >= 2 and x.numel() > 0


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
    if suggests_innermost(x):
        return torch.empty_like(x, memory_format=_INNERMOST[x.dim()])
    # Axes of size 1 may have any stride in a contiguous tensor.
    other = torch.contiguous_format if x.is_contiguous() else _INNERMOST.get(x.dim(), torch.preserve_format)
    return torch.empty_like(x, memory_format=other)


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
    dims = x.dim()
    if dims == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    if dims == 5:
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).is_contiguous()


def laid_out(x: Tensor, last: bool) -> bool:
    """Whether `arranged` would leave this tensor as it is, and say the same of its layout."""
    return (x.is_contiguous() and last is (x.dim() == 2)) or (last and not x.is_contiguous() and innermost(x))


def no_values(t: Tensor) -> int:
    """The address of a tensor that has none: 0 for an empty one.

    Raises:
        BatchNormError: its storage has been freed, as sharded training does between steps.
    """
    if t.numel() == 0:
        return 0
    raise BatchNormError(
        f"a tensor must have its values in memory; the storage of one of shape {tuple(t.shape)} is empty"
    )


def like(x: Tensor, pattern: Tensor) -> Tensor:
    """X in the dtype and strides of pattern."""
    if x.dtype is pattern.dtype and x.stride() == pattern.stride():
        return x
    return torch.empty_like(pattern).copy_(x)


def data(x: Tensor, last: bool, groups: int) -> Any:
    """What the extension is told about a tensor, which may be without samples."""
    n, c, *rest = x.shape
    return _native.Data(DTYPES[x.dtype], n, c, math.prod(rest), last, groups, torch.get_num_threads())


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


def _vectors(x: Tensor, g: Tensor | None, *given: Tensor) -> list[Tensor]:
    """Channel vectors `(groups, C)` as the kernels read them, once x, g and they are known to go together.

    Raises:
        OperandError: sizes that do not, or a vector on another device.
    """
    first = given[0]
    if g is not None and g.shape != x.shape:
        raise OperandError(f"g must have the shape of x, {tuple(x.shape)}; it was {tuple(g.shape)}")
    if (
        first.dim() != 2
        or first.shape[1] != x.shape[1]
        or any(v.shape[-1:] not in (first.shape[1:], (1,)) for v in given)
    ):
        shapes = ", ".join(str(tuple(v.shape)) for v in given)
        raise OperandError(
            f"channel vectors must be (groups, {x.shape[1]}) for x of shape {tuple(x.shape)}; they were {shapes}"
        )
    if not all(v.is_cpu for v in given):
        raise OperandError(f"channel vectors must be on the CPU, as x is; one was on {[v.device for v in given]}")
    return [v.detach().expand_as(first).to(torch.float64).contiguous() for v in given]


def require_channels(x: Tensor, **vectors: Tensor | None) -> None:
    """Refuse channel vectors that the kernels may not read beside x.

    Raises:
        OperandError: another size than x's channels, another device or dtype.
    """
    for name, v in vectors.items():
        if v is not None and not vector(v, x.shape[1]):
            legal = f"{x.shape[1]} contiguous values on the CPU for x of shape {tuple(x.shape)}"
            raise OperandError(f"{name} must be {legal}; it was {v.dtype} of shape {tuple(v.shape)} on {v.device}")


def reduce(x: Tensor, weight: Tensor | None = None, groups: int = 1, centred: bool = True) -> RawMoments:
    """As `reference.reduce`."""
    x, last = arranged(x.detach())
    held, address, kind = spread(weight, x)
    rows = torch.empty(4, groups, x.shape[1], dtype=torch.float64, device="cpu")
    _native.reduce(data(x, last, groups), x.data_ptr(), address, kind, rows.data_ptr(), centred)
    del held
    return RawMoments(*rows.unbind(0))


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None = None) -> Tensor:
    """As `reference.apply`."""
    x, last = arranged(x.detach())
    held, address, kind = spread(weight, x)
    vectors = _vectors(x, None, mean, scale, shift)
    y = blank(x)
    told = data(x, last, len(mean))
    _native.apply(told, x.data_ptr(), y.data_ptr(), address, kind, *(v.data_ptr() for v in vectors))
    del held
    return y


def backward_reduce(
    g: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.backward_reduce`."""
    if not plain(g):  # gradients batched by vmap
        return reference.backward_reduce(g, x, mean, invstd, weight)
    x, last = arranged(x.detach())
    vectors = _vectors(x, g, mean, invstd)
    g = like(g.detach(), x)
    held, address, kind = spread(weight, x)
    sums = torch.empty(2, *mean.shape, dtype=torch.float64, device="cpu")
    told = data(x, last, len(mean))
    addresses = [v.data_ptr() for v in (*vectors, *sums.unbind(0))]
    _native.backward_reduce(told, g.data_ptr(), x.data_ptr(), address, kind, *addresses)
    del held
    return sums[0], sums[1]


def backward_apply(
    g: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    u: Tensor,
    v: Tensor,
    weight: Tensor | None = None,
    may_leave_out: bool = True,
) -> Tensor:
    """As `reference.backward_apply`; a v of 0 always leaves x out."""
    if not plain(g):
        return reference.backward_apply(g, x, centre, scale, u, v, weight, may_leave_out)
    x, last = arranged(x.detach())
    vectors = _vectors(x, g, centre, scale, u, v)
    g = like(g.detach(), x)
    held, address, kind = spread(weight, x)
    dx = blank(x)
    told = data(x, last, len(centre))
    _native.backward_apply(
        told, g.data_ptr(), x.data_ptr(), dx.data_ptr(), address, kind, *(t.data_ptr() for t in vectors)
    )
    del held
    return dx


PASSES = Passes("native", serves, reduce, apply, backward_reduce, backward_apply)
