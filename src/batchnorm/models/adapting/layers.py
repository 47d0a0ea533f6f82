"""Layers under adaptation: the same objects, at inference in every mode, with the source's statistics beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm import layers as ours
from batchnorm.kernels.shapes import NARROW
from batchnorm.layers import BatchNorm, Mixture
from batchnorm.layers.choices.inference import Inference
from batchnorm.layers.passing import batch_moments
from batchnorm.layers.recompute import recomputing
from batchnorm.layers.rule import Rows

_BUFFERS = ("adapted_mean", "adapted_var")


class Adapted(BatchNorm):
    """A batch norm layer that normalises by its adaptation, whatever `.train()` and `.eval()` say.

    adapted_mean and adapted_var stand in the place of the running statistics, which nothing moves.
    They are not saved: a state_dict holds the source's statistics.
    """

    follows: bool = False

    def stat(self, name: str) -> Any:
        """A buffer; for the running statistics, their adapted form."""
        adapted = {"running_mean": "adapted_mean", "running_var": "adapted_var"}.get(name)
        return super().stat(name) if adapted is None else self._buffers[adapted]

    def source(self, name: str) -> Any:
        """A buffer of the source."""
        return super().stat(name)

    def _natively(self, x: Tensor, weight: Tensor | None, residual: Tensor | None) -> None:
        return None

    def _goes_in_place(self, x: Tensor, weight: Tensor | None) -> bool:
        return False

    def _normalised(self, x: Tensor, weight: Tensor | None) -> Tensor:
        inference = self.recipe.inference
        if isinstance(inference, Mixture) and x.numel():
            y = self._mixed(x, weight, inference)
        else:
            y = self._with_stored(x, weight)
        return self.recipe.coupling.finish(y, weight)

    def _mixed(self, x: Tensor, weight: Tensor | None, inference: Mixture) -> Tensor:
        sharing, plan = self._mixing(x, weight, inference)
        found = batch_moments(x, sharing)
        y, _ = self._spell_or_pass(x, sharing, plan, batch=found)
        if self.follows and not recomputing():
            self._follow(plan.rows(found)[2])
        return y

    @torch.no_grad()
    def _follow(self, plan: Rows) -> None:
        ok = torch.isfinite(plan.mean).all() & torch.isfinite(plan.var).all()
        for name, new in (("adapted_mean", plan.mean[0]), ("adapted_var", plan.var[0])):
            buffer: Any = self._buffers[name]
            buffer.copy_(torch.where(ok, new, buffer.to(new.dtype)))


class AdaptedBatchNorm1d(Adapted, ours.BatchNorm1d):
    """A `BatchNorm1d` under adaptation."""


class AdaptedBatchNorm2d(Adapted, ours.BatchNorm2d):
    """A `BatchNorm2d` under adaptation."""


class AdaptedBatchNorm3d(Adapted, ours.BatchNorm3d):
    """A `BatchNorm3d` under adaptation."""


ADAPTED: dict[type[nn.Module], type[Adapted]] = {
    nn.BatchNorm1d: AdaptedBatchNorm1d,
    nn.BatchNorm2d: AdaptedBatchNorm2d,
    nn.BatchNorm3d: AdaptedBatchNorm3d,
    ours.BatchNorm1d: AdaptedBatchNorm1d,
    ours.BatchNorm2d: AdaptedBatchNorm2d,
    ours.BatchNorm3d: AdaptedBatchNorm3d,
    BatchNorm: Adapted,
    nn.SyncBatchNorm: Adapted,
}


class _Adapting(Adapted):
    """A subclass of this package's layers, with its own forward, under adaptation; pickled by the subclass's name."""

    def __reduce__(self) -> Any:
        return _blank, (self.__dict__["_source"][0],), dict(self.__dict__)


def _blank(kind: type[nn.Module]) -> Any:
    found: Any = adapted_class(kind)
    return found.__new__(found)


def adapted_class(kind: type[nn.Module]) -> type[Adapted] | None:
    """What a layer of this class is under adaptation; None where its own forward would be lost."""
    if kind not in ADAPTED and issubclass(kind, BatchNorm) and not issubclass(kind, Adapted):
        ADAPTED[kind] = type(f"Adapted{kind.__name__}", (_Adapting, kind), {"__doc__": kind.__doc__})
    return ADAPTED.get(kind)


@torch.no_grad()
def begin(layer: Any, inference: Inference, follows: bool = False) -> None:
    """Put a layer under adaptation, starting from its own statistics; one that is already starts anew."""
    end(layer)
    mean, var = layer.running_mean, layer.running_var
    recipe = None
    if isinstance(layer, BatchNorm):
        mean, var, recipe = layer.stat("running_mean"), layer.stat("running_var"), layer.recipe
    wide = torch.float32 if mean.dtype in NARROW else mean.dtype
    layer.__dict__["_source"] = type(layer), recipe
    layer.__class__ = adapted_class(type(layer))  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in zip(_BUFFERS, (mean, var), strict=True):
        layer.register_buffer(name, value.to(wide, copy=True), persistent=False)
    layer.recipe = replace(layer.recipe, inference=inference)
    layer.__dict__["follows"] = follows


def end(layer: Any) -> None:
    """Give a layer back as it was; the statistics were never touched."""
    if not isinstance(layer, Adapted):
        return
    kind, recipe = layer.__dict__.pop("_source")
    for name in _BUFFERS:
        del layer._buffers[name]
        layer._non_persistent_buffers_set.discard(name)
    for name in ("recipe", "follows"):
        layer.__dict__.pop(name, None)
    layer.__class__ = kind
    if recipe is not None:
        layer.recipe = recipe


@torch.no_grad()
def write(layer: Adapted, mean: Tensor, var: Tensor) -> None:
    """Set the adapted statistics."""
    for name, value in zip(_BUFFERS, (mean, var), strict=True):
        layer._buffers[name].copy_(value)  # pyright: ignore[reportOptionalMemberAccess]
