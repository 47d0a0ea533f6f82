"""What counts as data: masks, lengths and sample weights, brought to the shape `(N, 1, *)` of the passes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError, check
from batchnorm.layers.asserting import require, transformed


class MaskInput(NamedTuple):
    """A mask, lengths or weights as the caller gave them; resize says whether other sizes may be sampled from it."""

    mask: Tensor | None = None
    lengths: Tensor | None = None
    weights: Tensor | None = None
    resize: bool = False

    @property
    def kind(self) -> str | None:
        """Which of the three was given."""
        return next((name for name in ("mask", "lengths", "weights") if getattr(self, name) is not None), None)

    def meets(self, kind: str) -> bool:
        """Whether this is what an extent requires; lengths are a mask."""
        return self.kind == kind or (kind == "mask" and self.kind == "lengths")

    def check(self) -> MaskInput:
        """Check that at most one is given, of the right type."""
        several = [name for name in ("mask", "lengths", "weights") if getattr(self, name) is not None]
        if len(several) > 1:
            raise BatchNormError(f"give one of mask, lengths and weights; got {' and '.join(several)}")
        for name in several:
            check(isinstance(getattr(self, name), Tensor), name, "a tensor", type(getattr(self, name)).__name__)
        for name in ("mask", "weights"):
            given = getattr(self, name)
            if given is not None:
                require_kind(name, given)
        if self.mask is not None:
            check(self.mask.dtype == torch.bool, "mask", "a boolean tensor, True where data is", self.mask.dtype)
        if self.lengths is not None:
            integer = not self.lengths.is_floating_point() and self.lengths.dtype != torch.bool
            check(integer and self.lengths.dim() == 1, "lengths", "integers of shape (N,)", _described(self.lengths))
        return self

    def on(self, x: Tensor) -> Tensor | None:
        """The mask or weights of an input `(N, C, *)`, as `(N, 1, *)`."""
        if self.lengths is not None:
            return _from_lengths(self.lengths, x)
        given = self.mask if self.mask is not None else self.weights
        if given is None:
            return None
        if self.resize and given.dim() > 1 and given.shape[1:] != x.shape[2:]:
            given = _resized(given, x)
        return against(x, given)


def require_kind(name: str, given: Tensor) -> None:
    """Refuse a mask or weights without a batch axis, and complex ones."""
    legal = "real and of shape (N,) or (N, *spatial)"
    check(given.dim() > 0 and not given.is_complex(), name, legal, _described(given))


def require_weights(weights: Tensor, layer: nn.Module | None = None) -> None:
    """Refuse weights that are NaN, infinite or negative, without waiting for their device."""
    if transformed() or not weights.is_floating_point():
        return
    message = "weights must be finite and not negative, 0 for what is no data"
    require(((weights >= 0) & (weights < torch.inf)).all(), message, layer)


def _described(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}"


def _from_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    check(x.dim() == 3, "lengths", "for inputs (N, C, L); use mask= for others", f"with {tuple(x.shape)}")
    check(len(lengths) == len(x), "lengths", f"of shape ({len(x)},), one a sample", f"of shape {tuple(lengths.shape)}")
    return (torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None])[:, None]


def _resized(given: Tensor, x: Tensor) -> Tensor:
    """The value at the nearest position, for layers that see another size."""
    check(given.dim() == x.dim() - 1 and len(given) == len(x), "mask", _legal(x), f"of shape {tuple(given.shape)}")
    for axis, size in enumerate(x.shape[2:], start=1):
        positions = (torch.arange(size, device=given.device) * given.shape[axis]) // size
        given = given.index_select(axis, positions)
    return given


def _legal(x: Tensor) -> str:
    return f"of a shape that begins {(x.shape[0], *x.shape[2:])}, x's without the channel axis"


def against(x: Tensor, weight: Tensor) -> Tensor:
    """Reshape a mask or weight given without the channel axis to broadcast over `(N, C, *)`."""
    without = (x.shape[0], *x.shape[2:])
    fits = weight.dim() <= len(without) and tuple(weight.shape) == without[: weight.dim()]
    check(fits, "mask or weights", _legal(x), f"of shape {tuple(weight.shape)}")
    return weight.reshape(weight.shape[0], 1, *weight.shape[1:], *[1] * (x.dim() - 1 - weight.dim()))
