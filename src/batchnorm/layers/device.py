"""A call on a CUDA device by Triton's kernels: one launch or three each way, and nothing is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels import native, triton
from batchnorm.layers.device_call import Call
from batchnorm.layers.operands import mixed
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import Move, Numbers, Vectors


class Kernels(NamedTuple):
    """What a device's kernels have of their own: what they decline, read and take, and the call once it is settled."""

    declined: Callable[..., str | None]
    serves: Callable[[Tensor], bool]
    readable: Callable[..., bool]
    takes: Callable[[Numbers, Vectors, Any], bool]
    call: Callable[..., Any]


def _declined(layer: Any, r: Any, x: Tensor, sample_weight: Tensor | None, groups: int, fuses: bool) -> str | None:
    """Why the kernels do not serve a call of a layer that `backends.Ready` has settled, or None."""
    why = triton.declined(x)
    if why is not None:
        return why
    if layer.inplace and layer.training and not r.stored:
        return "the in-place form starts its backward from the output"
    if r.sync is not None and r.sync.size() > 1:
        return "the statistics are shared over processes"
    if r.coupling.is_plain and groups == 1 and sample_weight is None and not fuses:
        return "torch's kernel is as fast for plain batch norm and nothing to fuse"
    meets = r.tracks and r.recipe.policy.too_few == "population" and not r.coupling.takes_one_value
    if meets and sample_weight is not None and recomputing():
        return "the statistics that groups of one value met have moved since"
    return None


def _takes(numbers: Numbers, vectors: Vectors, move: Move) -> bool:
    """Whether each is one value, a number or a tensor, and nothing is learned."""
    every = [v for v in (*numbers, *move[:4]) if isinstance(v, Tensor)]
    learned = any(v.requires_grad for v in (*every, *(v for v in vectors if v is not None)))
    return not learned and all(v.numel() == 1 for v in every)


def _readable(x: Tensor, weight: Any, bias: Any, sample_weight: Tensor | None, statistics: Any) -> bool:
    """As `backends.readable`: vectors of one value a channel, and a mask or weights, lie in order beside x."""

    def lies(v: Any) -> bool:
        return native.dense(v) and v.device == x.device and v.numel() == x.shape[1] and v.is_contiguous()

    if not all(v is None or (lies(v) and not mixed(v, x)) for v in (weight, bias)):
        return False
    if statistics is not None:
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        if not all(lies(v) and v.dtype is dtype and not v.requires_grad for v in statistics[:2]):
            return False
        if any(v is not None and (v.device != x.device or v.dtype is not torch.int64) for v in statistics[2:]):
            return False
    return sample_weight is None or (type(sample_weight) is Tensor and sample_weight.device == x.device)


KERNELS = Kernels(_declined, lambda x: triton.declined(x) is None, _readable, _takes, Call)
