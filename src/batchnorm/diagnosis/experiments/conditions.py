"""How batch norm layers normalise while an experiment runs; everything as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from batchnorm.models.random_state import cuda_devices
from batchnorm.models.state import in_mode

Statistics = dict[str, tuple[Tensor, Tensor]]
Layers = dict[str, _BatchNorm]


@contextmanager
def modes(model: nn.Module, training: bool, but: Iterable[nn.Module] = ()) -> Iterator[set[nn.Module]]:
    """Every module in one mode, those in `but` in the other, without gradients; their own flags afterwards.

    Batch norm in eval is held there, whatever a forward does; given are the layers that one had put in train mode.
    """
    others, switched = list(but), set[nn.Module]()

    def hold(layer: nn.Module, args: Any) -> None:
        # One that does not track is asked for its batch's statistics.
        if layer.training and layer.track_running_stats:
            switched.add(layer)
            layer.training = False

    held = [m for m in model.modules() if isinstance(m, _BatchNorm) and (m in others) == training]
    with in_mode(model, training, others), torch.no_grad(), ExitStack() as stack:
        for layer in held:
            stack.callback(layer.register_forward_pre_hook(hold, prepend=True).remove)
        yield switched


@contextmanager
def by_batch(model: nn.Module, layers: Layers, rest: bool = False) -> Iterator[None]:
    """Layers normalise with the batch and nothing moves; all else is in eval, or with rest in train mode."""
    others = [m for m in model.modules() if isinstance(m, _BatchNorm)] if rest else []
    # A layer that does not track normalises with its batch, whatever its coupling, and moves nothing.
    with modes(model, rest, but=others), holding(layers.values(), "track_running_stats", False):
        for layer in layers.values():
            layer.training = True
        yield


@contextmanager
def swapped(layers: Layers, statistics: Statistics, names: Iterable[str] | None = None) -> Iterator[None]:
    """Other statistics in the named layers (all), the stored ones to the bit afterwards."""
    chosen = [name for name in (statistics if names is None else names) if name in statistics]
    before = {n: (layers[n].running_mean.clone(), layers[n].running_var.clone()) for n in chosen}  # pyright: ignore
    try:
        with torch.no_grad():
            for name in chosen:
                write(layers[name], *statistics[name])
        yield
    finally:
        with torch.no_grad():
            for name, pair in before.items():
                write(layers[name], *pair)


def write(layer: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Overwrite a layer's statistics in place."""
    layer.running_mean.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]
    layer.running_var.copy_(var)  # pyright: ignore[reportOptionalMemberAccess]


@contextmanager
def holding(objects: Iterable[Any], name: str, value: Any) -> Iterator[None]:
    """Another value of this attribute in all of these; their own afterwards."""
    before = [(one, getattr(one, name)) for one in objects]
    try:
        for one, _ in before:
            setattr(one, name, value)
        yield
    finally:
        for one, kept in before:
            setattr(one, name, kept)


@contextmanager
def as_batch_norm(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Layers with a forward of their own do what torch's batch norm does in eval mode with their buffers."""

    def replace(layer: _BatchNorm) -> None:
        rest = layer.weight, layer.bias, False, 0.0, layer.eps
        layer.forward = lambda input: functional.batch_norm(input, layer.running_mean, layer.running_var, *rest)

    changed = [layer for layer in layers if "forward" not in vars(layer)]
    try:
        for layer in changed:
            replace(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


@contextmanager
def same_random(model: nn.Module) -> Iterator[None]:
    """Random numbers that repeat; the generators as they were afterwards."""
    with torch.random.fork_rng(devices=cuda_devices(model)):
        torch.manual_seed(0)
        yield


class _Local(_BatchNorm):
    """SyncBatchNorm without its refusal of the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def sync_on_cpu(layers: Layers) -> AbstractContextManager[None]:
    """Let a SyncBatchNorm on the CPU run as the plain layer it is in one process."""
    taken = [m for m in layers.values() if type(m) is SyncBatchNorm and getattr(m.running_mean, "is_cpu", False)]
    return holding(taken, "__class__", _Local)
