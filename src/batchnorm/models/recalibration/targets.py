"""Which layers a run writes, what their buffers mean, and the model that is actually called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from batchnorm.arguments import told
from batchnorm.errors import BatchNormError, UserCodeError
from batchnorm.failures import reason
from batchnorm.layers import BatchNorm
from batchnorm.models.find import tracking_layers
from batchnorm.models.modes import is_frozen

Select = Callable[[str, _BatchNorm], bool] | Iterable[str] | None


@dataclass(frozen=True)
class Target:
    """One layer to estimate; reads and writes go to the active bank where the layer has banks."""

    name: str
    layer: _BatchNorm
    # Settle on the biased variance, whatever the layer stores.
    biased: bool = False

    def stat(self, name: str) -> Any:
        """A running buffer."""
        return self.layer.stat(name) if isinstance(self.layer, BatchNorm) else getattr(self.layer, name)

    @property
    def correction(self) -> int:
        """1 where the layer stores the unbiased variance, as torch does."""
        if self.biased:
            return 0
        return getattr(self.layer.recipe.estimator, "correction", 1) if isinstance(self.layer, BatchNorm) else 1

    @property
    def centres(self) -> bool:
        """False for layers that store the second moment and take no mean off."""
        return not isinstance(self.layer, BatchNorm) or self.layer.recipe.coupling.centres

    @torch.no_grad()
    def write(self, mean: Tensor, var: Tensor) -> None:
        """The statistics that eval mode normalises with."""
        if not self.centres:
            mean, var = torch.zeros_like(mean), var + mean.square()
        self.stat("running_mean").copy_(mean)
        self.stat("running_var").copy_(var)

    def read(self) -> tuple[Tensor, Tensor]:
        """Mean and variance as stored, in float64 on the CPU."""
        return tuple(self.stat(f"running_{n}").detach().cpu().double() for n in ("mean", "var"))  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def finish(self, mean: Tensor, var: Tensor, batches: int, count: float) -> None:
        """Write what is to stay: the statistics, the counter, and what the estimator would remember of them."""
        self.write(mean, var)
        counter = self.stat("num_batches_tracked")
        if counter is not None:
            counter.fill_(batches)
        if isinstance(self.layer, BatchNorm) and self.layer.memory_names:
            start = self.layer._initial_memory(self.stat("running_mean"), self.stat("running_var"))
            for name, value in start.items():
                self.stat(name).copy_(value)
            held = self.stat("pooled_count")
            if held is not None:
                held.fill_(count)


@dataclass(frozen=True)
class Targets:
    """The layers to estimate, and those left out on purpose."""

    active: dict[str, Target]
    frozen: tuple[str, ...]

    @staticmethod
    def of(model: nn.Module, select: Select, bank: str | None) -> Targets:
        """Every layer with running statistics that is not frozen, is selected, and has the bank."""
        layers = tracking_layers(model)
        if select is not None:
            layers = _selected(layers, select)
        if bank is not None:
            have = {n: m for n, m in layers.items() if isinstance(m, BatchNorm) and bank in m.bank_names}
            if not have:
                known = sorted({b for m in layers.values() if isinstance(m, BatchNorm) for b in m.bank_names})
                raise BatchNormError(f"bank must be one of {known}; it was {bank!r}")
            layers = have
        frozen = tuple(name for name, layer in layers.items() if is_frozen(layer))
        active = {name: Target(name, layer) for name, layer in layers.items() if name not in frozen}
        if not active:
            raise BatchNormError("model must contain a batch norm layer that is not frozen; all are")
        return Targets(active, frozen)


def _selected(layers: dict[str, _BatchNorm], select: Any) -> dict[str, _BatchNorm]:
    if callable(select):
        chosen = {name: layer for name, layer in layers.items() if _asked(select, name, layer)}
    else:
        names = [select] if isinstance(select, str) else list(select)
        unknown = [name for name in names if name not in layers]
        if unknown:
            raise BatchNormError(
                f"select must name batch norm layers of the model, such as {next(iter(layers))!r}; "
                f"it named {told(unknown[0])}"
            )
        chosen = {name: layers[name] for name in names}
    if not chosen:
        raise BatchNormError("select matches no batch norm layer of the model")
    return chosen


def _asked(select: Any, name: str, layer: _BatchNorm) -> bool:
    try:
        return bool(select(name, layer))
    except Exception as error:
        raise UserCodeError(
            f"select must take a name and a layer and return True or False; at {name!r} it raised {reason(error)}"
        ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The module to call: what is inside torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            # Their forward broadcasts buffers and hooks gradients, neither of which belongs here.
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def shards(model: nn.Module) -> bool:
    """Whether parameters are sharded: a forward must then run to its end, and alone."""
    kinds = {"FSDPModule", "FullyShardedDataParallel"}
    return any(kinds & {kind.__name__ for kind in type(module).__mro__} for module in model.modules())
