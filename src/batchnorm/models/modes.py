"""Modes of a whole model that hold whatever `.train()` is called: frozen and paused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.arguments import a_flag, a_module, arguments
from batchnorm.layers import BatchNorm
from batchnorm.layers.held import hold
from batchnorm.models.find import Model, present_layers


@arguments(model=a_module, affine=a_flag)
def freeze(model: Model, *, affine: bool = False) -> Model:
    """Make every batch norm layer use its stored statistics and never update them, whatever `.train()` says.

    Example:
        >>> import torch, batchnorm
        >>> model = batchnorm.freeze(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
        >>> _ = model.train()(torch.randn(8, 2))
        >>> int(model[0].num_batches_tracked)
        0

    Works on torch's layers, this package's and subclasses; survives deepcopy and pickle, and
    applies to part of a model when given that part. A state_dict does not carry it.

    Args:
        model: the model or a part of it; returned as it is.
        affine: also stop training weight and bias (`requires_grad_(False)`).

    Raises:
        BatchNormError: no batch norm layer.
    """
    for layer in present_layers(model).values():
        if isinstance(layer, BatchNorm):
            layer.frozen = True
        elif not is_frozen(layer):
            layer.register_forward_pre_hook(_hold)
            layer.register_forward_hook(_release, always_call=True, prepend=True)
        if affine:
            _train_affine(layer, False)
    _forget_compiled()
    return model


@arguments(model=a_module, affine=a_flag)
def unfreeze(model: Model, *, affine: bool = False) -> Model:
    """Undo `freeze`: layers follow `.train()` and `.eval()` again; with affine, weight and bias train again."""
    for layer in present_layers(model).values():
        if isinstance(layer, BatchNorm):
            layer.frozen = False
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_hold, _release)]:
                del hooks[key]
                layer._forward_hooks_always_called.pop(key, None)
        if affine:
            _train_affine(layer, True)
    _forget_compiled()
    return model


def is_frozen(layer: nn.Module) -> bool:
    """Whether `freeze` holds this layer."""
    a_module("layer", layer)
    return getattr(layer, "frozen", False) is True or _hold in layer._forward_pre_hooks.values()


def _train_affine(layer: _BatchNorm, train: bool) -> None:
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.requires_grad_(train)


# Top-level functions, so that hooked models can be copied and pickled.
def _hold(module: nn.Module, args: Any) -> None:
    module.__dict__.setdefault("_before_hold", []).append(module.training)
    module.training = False


def _release(module: nn.Module, args: Any, output: Any) -> None:
    before = module.__dict__.get("_before_hold")
    if before:
        module.training = before.pop()
    if not before:
        module.__dict__.pop("_before_hold", None)


def _forget_compiled() -> None:
    # Compiled graphs do not notice hooks added or removed later; without this a frozen stock
    # layer inside a compiled model would keep moving.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@arguments(model=a_module)
@contextmanager
def pause(model: Model) -> Iterator[Model]:
    """Within the context no running statistics and no counter change; layers normalise as usual.

    Example:
        >>> import torch, batchnorm
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> with batchnorm.pause(model):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model[0].num_batches_tracked)
        0

    For the second forward of SAM, adversarial and consistency passes, a learning-rate finder or
    a summary. Contexts may nest and overlap, an exception restores everything, and a copy made inside is
    not paused.

    Raises:
        BatchNormError: no batch norm layer.
    """
    with ExitStack() as stack:
        for layer in present_layers(model).values():
            stack.callback(_pause(layer))
        yield model


def _pause(layer: _BatchNorm) -> Callable[[], None]:
    """Pause one layer, until what is returned is called; compiled code guards on attributes, not on hooks.

    A stock layer that does not track normalises with the batch in training and moves nothing; in
    eval it still uses its buffers. This package's layers may normalise with the population in
    training, so they have a switch of their own.
    """
    if isinstance(layer, BatchNorm):
        return hold(layer, "paused", True)
    return hold(layer, "track_running_stats", False)
