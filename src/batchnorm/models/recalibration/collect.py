"""What each layer receives in a forward that normalises with its batches: what `diagnose` measures with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import Moments
from batchnorm.models.state import evaluating


@dataclass
class Collected:
    """What one layer received: all values pooled, how its samples' means spread, and the variance within batches."""

    values: Moments | None = None
    sample_means: Moments | None = None
    within: Tensor | None = None
    calls: int = 0
    fewest_values: float = float("inf")

    def add(self, x: Tensor) -> None:
        """Pool one input `(N, C, *)`."""
        x = x.detach()
        if x.numel() == 0:
            return
        values = Moments.of(x)
        means = x.double().flatten(2).mean(2) if x.dim() > 2 else x.double()
        within = values.count * values.var(1)
        self.merge(Collected(values, Moments.of(means), within, 1, x.numel() / x.shape[1]))

    def merge(self, other: Collected) -> None:
        """Pool what was collected elsewhere."""
        if other.values is None or other.sample_means is None or other.within is None:
            return
        self.values = other.values if self.values is None else self.values.merge(other.values)
        means = self.sample_means
        self.sample_means = other.sample_means if means is None else means.merge(other.sample_means)
        self.within = other.within if self.within is None else self.within + other.within
        self.calls += other.calls
        self.fewest_values = min(self.fewest_values, other.fewest_values)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, per channel: samples are independent, the positions within one are not."""
        if self.sample_means is None:
            return torch.tensor(torch.nan)
        return (self.sample_means.var(1) / self.sample_means.count).sqrt()


@contextmanager
def collecting(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[dict[str, Collected]]:
    """Pool what each layer receives; layers normalise with the batch, all else is in eval.

    No statistic moves. What else a forward changes is the caller's to put back (`preserved`).
    """
    collected = {name: Collected() for name in layers}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            collected[name].add(args[0])

        return hook

    with evaluating(model), ExitStack() as stack:
        for name, layer in layers.items():
            # A layer that does not track normalises with its batch, whatever its coupling, and moves nothing.
            stack.callback(setattr, layer, "track_running_stats", layer.track_running_stats)
            layer.training, layer.track_running_stats = True, False
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        yield collected


def rms(values: Tensor) -> float:
    """Root mean square over channels."""
    return float(values.square().mean().sqrt())
