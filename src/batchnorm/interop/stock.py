"""Other libraries' batch norm layers inside a torch model: to torch's own, with the same eval output, and back."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_module, a_process_group, arguments, number, or_mapping
from batchnorm.errors import BatchNormError, check
from batchnorm.interop.states import scale_in_place_abn
from batchnorm.layers import BatchNorm
from batchnorm.models import freeze
from batchnorm.models.find import Model, frozen_eps, is_frozen_copy
from batchnorm.models.graph.flow import linear_maps_before

_RANKS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ACTIVATIONS = {
    "relu": lambda p: nn.ReLU(),
    "leaky_relu": lambda p: nn.LeakyReLU(p),
    "elu": lambda p: nn.ELU(p),
    "identity": lambda p: None,
}


@overload
def to_torch(model: _BatchNorm, *, dims: int | dict[str, int] | None = None) -> nn.Module: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def to_torch(model: Model, *, dims: int | dict[str, int] | None = None) -> Model: ...
@arguments(model=a_module, dims=or_mapping(number("1, 2 or 3", lambda v: v in (1, 2, 3))))
def to_torch(model: nn.Module, *, dims: int | dict[str, int] | None = None) -> nn.Module:
    """Turn other libraries' batch norm layers into torch's own, with the same eval output.

    Example:
        >>> import torch, batchnorm.interop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4))
        >>> type(batchnorm.interop.to_torch(model)[1]).__name__
        'BatchNorm2d'

    - `SyncBatchNorm`: its rank from the convolution or linear layer before it, or from `dims`.
    - Frozen batch norm (detectron2, torchvision, timm: four buffers): `BatchNorm2d`, frozen as by
      `batchnorm.freeze(affine=True)`.
    - timm's `BatchNormAct2d` and its frozen form: a `Sequential` of batch norm, drop and activation. timm's and
      detectron2's other subclasses of torch's layers: the class they inherit from.
    - `ABN`, `InPlaceABN` and `InPlaceABNSync`: a `Sequential` of batch norm and activation; the
      in-place ones normalise with `|weight| + eps`, so that becomes the weight.

    This package's layers are left alone: `batchnorm.to_stock` turns those.

    Args:
        model: changed in place and returned; a root layer comes back as what it became.
        dims: spatial rank of SyncBatchNorm layers (1 also for (N, C)), one for all or by path.

    Raises:
        BatchNormError: a layer whose rank is not certain, or of a class that is not known here.
            Nothing is changed.
    """
    unknown = set(dims) - dict(model.named_modules()).keys() if isinstance(dims, dict) else set[str]()
    check(not unknown, "dims", "by paths of layers of the model", f"for {', '.join(map(repr, sorted(unknown)))}")
    before = linear_maps_before(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if module not in made:
            new = _new(name, module, before.get(name), dims)
            if new is not None:
                made[module] = new
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in made:
                setattr(parent, name, made[child])
    return made.get(model, model)


@arguments(model=a_module, process_group=a_process_group)
def to_sync(model: Model, process_group: Any = None) -> Model:
    """Turn torch's layers into `SyncBatchNorm`, keeping objects, hooks and the frozen state.

    Example:
        >>> import torch, batchnorm.interop
        >>> type(batchnorm.interop.to_sync(torch.nn.Sequential(torch.nn.BatchNorm2d(4)))[0]).__name__
        'SyncBatchNorm'

    Args:
        model: changed in place and returned.
        process_group: as in `torch.nn.SyncBatchNorm`.

    Raises:
        BatchNormError: a layer of this package, which syncs by `extent=batchnorm.layers.Sync()` instead.
    """
    layers = [m for m in model.modules() if type(m) in _RANKS.values()]
    ours = [name for name, m in model.named_modules() if isinstance(m, BatchNorm)]
    check(not ours, "model", "of torch's layers; convert(model, extent=Sync()) syncs this package's", ", ".join(ours))
    for layer in layers:
        layer.__class__ = nn.SyncBatchNorm
        layer.process_group = process_group
    return model


def _new(name: str, module: nn.Module, before: nn.Module | None, dims: Any) -> nn.Module | None:
    """What takes the module's place, or None where it stays."""
    names = [c.__name__ for c in type(module).__mro__]
    if isinstance(module, BatchNorm) or type(module) in _RANKS.values():
        return None
    if isinstance(module, nn.SyncBatchNorm):
        return _plain(module, _RANKS[_rank(name, before, dims)])
    if isinstance(module, _BatchNorm):
        return _subclass(name, module)
    if names[0].startswith("FrozenBatchNorm") or is_frozen_copy(module):
        return _thawed(module)
    if "ABN" in names:
        return _abn(name, module, in_place=names[0].startswith("InPlace"))
    return None


def _rank(name: str, before: nn.Module | None, dims: Any) -> int:
    given = dims.get(name) if isinstance(dims, dict) else dims
    if given is None and before is not None:
        given = getattr(before, "weight").dim() - 2 or 1  # noqa: B009
    if given is None:
        raise BatchNormError(
            f"dims must be given for SyncBatchNorm layer {name or '(root)'!r}: no convolution before it shows its rank"
        )
    check(given in _RANKS, "dims", "1, 2 or 3", given)
    return int(given)


def _plain(module: _BatchNorm, cls: type[nn.Module]) -> nn.Module:
    """A layer of the class which owns the very parameters, buffers and hooks of the module."""
    new: Any = cls(module.num_features, module.eps, module.momentum, False, module.track_running_stats)
    new.affine = module.affine
    for own in ("_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called"):
        getattr(new, own).clear()
        getattr(new, own).update(getattr(module, own))
    if new.track_running_stats and new._buffers.get("num_batches_tracked") is None:
        new.num_batches_tracked = torch.zeros((), dtype=torch.long)
    new.training = module.training
    return new


def _subclass(name: str, module: _BatchNorm) -> nn.Module | None:
    cls = next(c for c in type(module).__mro__ if c in _RANKS.values() or c is _BatchNorm)
    library = type(module).__module__.partition(".")[0]
    known = {"BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d", "BatchNormAct3d", "NaiveSyncBatchNorm"}
    if type(module).__name__ not in known or cls is _BatchNorm:
        raise BatchNormError(
            f"model must hold layers that are known here; {name or '(root)'!r} is a {type(module).__name__} of "
            f"{library}, whose forward is its own"
        )
    return _followed(_plain(module, cls), module)


def _followed(plain: nn.Module, module: nn.Module) -> nn.Module:
    """The drop and the activation that timm's layers hold, after the plain one."""
    after = [m for m in (getattr(module, "drop", None), getattr(module, "act", None)) if m is not None]
    after = [m for m in after if not isinstance(m, nn.Identity)]
    return nn.Sequential(plain, *after).train(module.training) if after else plain


def _thawed(module: Any) -> nn.Module:
    """A frozen layer's four buffers as a BatchNorm2d that `freeze` holds."""
    eps = frozen_eps(module)
    new = nn.BatchNorm2d(
        module.weight.numel(),
        module.eps if eps is None else eps,
        device=module.weight.device,
        dtype=module.weight.dtype,
    )
    with torch.no_grad():
        for role in ("weight", "bias", "running_mean", "running_var"):
            getattr(new, role).copy_(getattr(module, role))
    return _followed(freeze(new.train(module.training), affine=True), module)


def _abn(name: str, module: Any, *, in_place: bool) -> nn.Module:
    if module.activation not in _ACTIVATIONS:
        raise BatchNormError(
            f"layer {name or '(root)'!r} must have an activation of {', '.join(_ACTIVATIONS)}; it was "
            f"{module.activation!r}"
        )
    plain: Any = _plain(module, nn.BatchNorm2d)
    if in_place and plain.affine:
        plain.weight = nn.Parameter(scale_in_place_abn(plain.weight.detach(), module.eps), plain.weight.requires_grad)
    activation = _ACTIVATIONS[module.activation](module.activation_param)
    return plain if activation is None else nn.Sequential(plain, activation).train(module.training)
