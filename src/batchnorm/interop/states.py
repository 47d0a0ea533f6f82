"""State dicts of torch libraries whose batch norm entries mean something else, to stock and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from batchnorm.arguments import NOT_NEGATIVE, a_state, arguments, word
from batchnorm.errors import BatchNormError
from batchnorm.interop.torch_format import MOVING, is_batch_norm, key_sets

Library = Literal["detectron2", "detectron2-folded", "inplace_abn", "timm", "sync"]


@arguments(state=a_state, library=word(Library), like=a_state, eps=NOT_NEGATIVE)
def state_from(
    state: Mapping[str, Tensor], library: Library, *, like: Mapping[str, Tensor] | None = None, eps: float = 1e-5
) -> dict[str, Tensor]:
    """A library's state dict as torch's own layers hold it, with the same eval output.

    Example:
        >>> from typing import Literal

    import torch
        >>> frozen = {"bn.weight": torch.full((2,), 3.0), "bn.bias": torch.zeros(2)}
        >>> model = torch.nn.ModuleDict({"bn": torch.nn.BatchNorm2d(2)})
        >>> stock = state_from(frozen, "detectron2", like=model.state_dict())
        >>> sorted(stock)
        ['bn.bias', 'bn.num_batches_tracked', 'bn.running_mean', 'bn.running_var', 'bn.weight']
        >>> model.load_state_dict(stock)
        <All keys matched successfully>

    Args:
        state: layers are recognised by their key sets.
        library: "detectron2" (frozen batch norm; layers that have only weight and bias get the
            statistics under which those are the whole map), "inplace_abn" (the in-place layers,
            whose effective weight is |weight| + eps), "timm" or "sync" (the same entries as torch).
        like: a state dict of the stock model, which says which layers with only weight and bias are batch norms.
        eps: of the library's layers.

    Raises:
        BatchNormError: an unknown library, or a layer of `like` that the state does not have.
    """
    new = dict(state)
    for path, leaves in key_sets(like if like is not None else state).items():
        if not is_batch_norm(leaves):
            continue
        prefix = f"{path}." if path else ""
        if f"{prefix}running_var" not in new:
            weight = new.get(f"{prefix}weight")
            if weight is None:
                raise BatchNormError(f"state must hold every layer of like; it lacks {path!r}")
            new[f"{prefix}running_mean"] = torch.zeros_like(weight)
            new[f"{prefix}running_var"] = torch.full_like(weight, 1 - eps)
        if f"{prefix}num_batches_tracked" not in new:
            new[f"{prefix}num_batches_tracked"] = torch.zeros((), dtype=torch.long)
        if library == "inplace_abn" and f"{prefix}weight" in new:
            new[f"{prefix}weight"] = scale_in_place_abn(new[f"{prefix}weight"], eps)
    return new


@arguments(state=a_state, library=word(Library), eps=NOT_NEGATIVE)
def state_for(state: Mapping[str, Tensor], library: Library, *, eps: float = 1e-5) -> dict[str, Tensor]:
    """A stock state dict as a library's layers hold it, with the same eval output.

    Example:
        >>> from typing import Literal

    import torch
        >>> bn = torch.nn.BatchNorm2d(2)
        >>> sorted(state_for(bn.state_dict(), "detectron2-folded"))
        ['bias', 'weight']

    Args:
        state: of a model with torch's layers; batch norms are recognised by their key sets.
        library: as in `state_from`; "detectron2" drops the counter, "detectron2-folded" also puts the
            statistics into weight and bias, as models from Caffe2 have them.
        eps: of the library's layers; for folding, also the one the statistics are used with.

    Raises:
        BatchNormError: an unknown library; for "inplace_abn" a weight below eps, which |weight| + eps never is.
    """
    new = dict(state)
    for path, leaves in _batch_norms(state):
        if library.startswith("detectron2"):
            new.pop(leaves.get("num_batches_tracked", ""), None)
        if library == "detectron2-folded":
            mean, var = (new.pop(leaves[role]).double() for role in ("running_mean", "running_var"))
            prefix = f"{path}." if path else ""
            weight = state[leaves["weight"]] if "weight" in leaves else torch.ones_like(state[leaves["running_mean"]])
            bias = state[leaves["bias"]].double() if "bias" in leaves else 0.0
            scale = weight.double() / (var + eps).sqrt()
            new[f"{prefix}weight"] = scale.to(weight.dtype)
            new[f"{prefix}bias"] = (bias - mean * scale).to(weight.dtype)
        if library == "inplace_abn" and "weight" in leaves:
            weight = state[leaves["weight"]]
            if bool((weight < eps).any()):
                raise BatchNormError(
                    f"state must have batch norm weights of at least eps={eps:g} for inplace_abn, which uses |weight| "
                    f"+ eps; {leaves['weight']} goes down to {float(weight.min()):.3g}"
                )
            new[leaves["weight"]] = weight - eps
    return new


def scale_in_place_abn(weight: Tensor, eps: float) -> Tensor:
    """The scale that the in-place layers of inplace_abn use."""
    return weight.abs() + eps


def _batch_norms(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, str]]]:
    for path, leaves in key_sets(state).items():
        if leaves.keys() >= MOVING:
            yield path, leaves
