"""What counts as data: masks, lengths and sample weights, brought to the shape `(N, 1, *)` of the passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError, check
from batchnorm.layers.asserting import exporting, require, transformed
from batchnorm.layers.naming import describe

_KINDS = ("mask", "lengths", "weights")


class MaskInput(NamedTuple):
    """A mask, lengths or weights as the caller gave them; resize says whether other sizes may be sampled from it."""

    mask: Tensor | None = None
    lengths: Tensor | None = None
    weights: Tensor | None = None
    resize: bool = False

    @property
    def kind(self) -> str | None:
        """Which of the three was given."""
        return next((name for name in _KINDS if getattr(self, name) is not None), None)

    def meets(self, kind: str) -> bool:
        """Whether this is what an extent requires; lengths are a mask."""
        return self.kind == kind or (kind == "mask" and self.kind == "lengths")

    def check(self) -> MaskInput:
        """Check that at most one is given, of the right type."""
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise BatchNormError(f"give one of mask, lengths and weights; got {' and '.join(given)}")
        for name in given:
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                check(False, name, "a tensor", type(value).__name__)
            if name != "lengths":
                require_kind(name, value)
            elif value.is_floating_point() or value.dtype == torch.bool or value.dim() != 1:
                check(False, "lengths", "integers of shape (N,)", _described(value))
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


def weight_of(layer: Any, x: Tensor, given: MaskInput) -> Tensor | None:
    """The mask or weights of this call, or those of the context around it, as `(N, 1, *)`."""
    if given.kind is None:
        given = layer._given or given
    kind = layer.recipe.extent.requires
    if kind is not None and not given.meets(kind):
        said = kind if kind == "mask" else f"{kind}={kind}"
        raise BatchNormError(
            f"{kind} must be given to {describe(layer)}; it was {given.kind or 'None'}: call layer(x, {said}), or "
            f"run the model inside batchnorm.masked(model, {said})"
        )
    if given.kind is None:
        return None
    if layer.recipe.coupling.looks_back:
        raise BatchNormError(f"{given.kind} must be None: {layer.recipe.coupling!r} cannot leave samples out")
    try:
        weight = given.check().on(x)
    except BatchNormError as error:
        raise BatchNormError(f"{error}, in {describe(layer)}") from None
    if given.weights is not None and weight is not None:
        require_weights(weight, layer)
    return weight


def require_kind(name: str, given: Tensor) -> None:
    """Refuse a mask or weights without a batch axis, complex ones, and a mask of numbers."""
    if given.dim() == 0 or given.is_complex():
        check(False, name, "real and of shape (N,) or (N, *spatial)", _described(given))
    if name == "mask" and given.dtype != torch.bool:
        check(False, "mask", "a boolean tensor, True where data is", given.dtype)


def require_weights(weights: Tensor, layer: nn.Module | None = None) -> None:
    """Refuse weights that are NaN, infinite or negative, without waiting for their device."""
    if weights.dtype is torch.bool or exporting() or transformed():
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
    if not fits:
        check(False, "mask or weights", _legal(x), f"of shape {tuple(weight.shape)}")
    return weight.reshape(weight.shape[0], 1, *weight.shape[1:], *[1] * (x.dim() - 1 - weight.dim()))
