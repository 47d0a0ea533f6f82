"""timm's `BatchNormAct2d`, which holds the drop and the activation after it, with this package's methods."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from batchnorm.arguments import a_module, a_string, arguments
from batchnorm.interop.extras import needs
from batchnorm.layers import BatchNorm2d
from batchnorm.layers.choices.table import Method
from batchnorm.models import convert as convert_plain
from batchnorm.models import to_stock as to_stock_plain
from batchnorm.models.find import Model


class _WithAct(BatchNorm2d):
    """This package's layer, then timm's drop and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Normalise, drop, activate."""
        y = super().forward(input, *args, **kwargs)
        # Under a symbolic trace the layer stays whole, its activation included.
        return y if isinstance(y, torch.fx.Proxy) else self.act(self.drop(y))


@arguments(model=a_module)
def convert(model: Model, method: Method = "batchnorm", **options: Any) -> Model:
    """Turn a timm model's batch norm layers into this package's, `BatchNormAct2d` with drop and activation included.

    Example:
        >>> model = convert(timm.create_model("regnety_002"), "debiased")  # doctest: +SKIP

    As `batchnorm.convert`: the same objects, parameters, hooks and state_dict keys. The layers are
    still instances of timm's class, so that `freeze_batch_norm_2d` and the like know them.

    Args:
        model: changed in place and returned.
        method: as in `batchnorm.convert`.
        **options: as in `batchnorm.convert`.

    Raises:
        BatchNormError: timm is not installed; as `batchnorm.convert`. Nothing is changed then.
    """
    theirs, ours = needs("timm.layers", "this adapter").BatchNormAct2d, _norm_act()
    plain = {theirs: nn.BatchNorm2d, ours: BatchNorm2d}
    return _as_plain(model, plain, ours, lambda: convert_plain(model, method, **options))


@arguments(model=a_module, bank=a_string)
def to_stock(model: Model, *, bank: str | None = None) -> Model:
    """Turn them back into timm's and torch's own layers, with the same eval output.

    Example:
        >>> model = to_stock(model)  # doctest: +SKIP

    Args:
        model: changed in place and returned.
        bank: as in `batchnorm.to_stock`.

    Raises:
        BatchNormError: timm is not installed; as `batchnorm.to_stock`. Nothing is changed then.
    """
    theirs, ours = needs("timm.layers", "this adapter").BatchNormAct2d, _norm_act()
    return _as_plain(model, {ours: BatchNorm2d}, theirs, lambda: to_stock_plain(model, bank=bank))


def _as_plain(model: Model, plain: dict[Any, Any], becomes: Any, verb: Any) -> Model:
    """Let a verb see layers of torch's or this package's class; afterwards they have the class that they become."""
    before: dict[Any, Any] = {m: type(m) for m in model.modules() if type(m) in plain}
    for module, cls in before.items():
        module.__class__ = plain[cls]
    try:
        model = verb()
    except BaseException:
        for module, cls in before.items():
            module.__class__ = cls
        raise
    for module in before:
        module.__class__ = becomes
    return model


@functools.cache
def _norm_act() -> Any:
    theirs = needs("timm.layers", "this adapter").BatchNormAct2d
    return type("NormAct", (_WithAct, theirs), {"__module__": __name__, "__doc__": _WithAct.__doc__})


def __getattr__(name: str) -> Any:
    # Where pickle looks for the class.
    if name == "NormAct":
        return _norm_act()
    raise AttributeError(name)
