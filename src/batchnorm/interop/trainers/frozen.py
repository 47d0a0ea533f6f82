"""Statistics that stay as they were, even where a trainer writes to the buffers itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from batchnorm.errors import BatchNormError
from batchnorm.models import freeze, unfreeze
from batchnorm.models.find import batch_norm_layers, tracking_layers
from batchnorm.models.modes import is_frozen

_NAMES = ("running_mean", "running_var", "num_batches_tracked")


class Frozen:
    """The batch norm layers of some parts of a model, frozen, with their statistics kept."""

    def __init__(self, model: nn.Module, parts: Iterable[str] | None, affine: bool) -> None:
        self.affine = affine
        self.parts = [model] if parts is None else [part_of(model, name) for name in parts]
        self._kept: list[tuple[nn.Module, str, Tensor]] = []
        self.hold()

    def hold(self) -> None:
        """Freeze, again where something has undone it."""
        for part in self.parts:
            # Not without need: freezing makes compiled graphs be made anew.
            if any(self._loose(layer) for layer in batch_norm_layers(part).values()):
                freeze(part, affine=self.affine)

    def _loose(self, layer: nn.Module) -> bool:
        trains = self.affine and any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        return trains or not is_frozen(layer)

    def keep(self) -> None:
        """Remember the statistics as they are now."""
        layers = [layer for part in self.parts for layer in tracking_layers(part).values()]
        buffers = [(layer, name, getattr(layer, name)) for layer in layers for name in _NAMES]
        self._kept = [(layer, name, buffer.clone()) for layer, name, buffer in buffers if buffer is not None]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what was written to the statistics, or in place of them."""
        for layer, name, value in self._kept:
            getattr(layer, name).copy_(value)

    def release(self) -> None:
        """Let the layers follow the mode again."""
        for part in self.parts:
            if batch_norm_layers(part):
                unfreeze(part, affine=self.affine)


def part_of(model: nn.Module, name: str, argument: str = "parts") -> nn.Module:
    """The module at a path; the argument is what an error names."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        must = "a path of a module" if argument == "part" else "paths of modules"
        raise BatchNormError(f"{argument} must be {must} of the model; there is no {name!r}") from error
