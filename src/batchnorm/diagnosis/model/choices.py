"""The same batches under three choices of statistics: the stored ones, the batch's own, and fresh ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.models.batches import call, count_samples
from batchnorm.models.modes import is_frozen
from batchnorm.models.state import evaluating

Metric = Callable[[Any, Any], Any]
Fresh = dict[str, tuple[Tensor, Tensor]]
NAMES = ("stored", "batch", "recalibrated")
PAIRS = 8  # batches whose outputs are held against other batches' labels


@dataclass
class Choices:
    """The metric per batch under each choice, and how far the outputs lie from those with the batch's statistics."""

    metric: dict[str, list[float]] = field(default_factory=dict)
    weights: list[int] = field(default_factory=list)
    recalibrated_gap: float | None = None
    batches: int = 0
    chance: float | None = None

    def mean(self, choice: str) -> float | None:
        """The metric over all samples, or None where none was asked for."""
        values = self.metric.get(choice)
        if not values:
            return None
        return sum(v * w for v, w in zip(values, self.weights, strict=True)) / max(sum(self.weights), 1)

    def differs(self, a: str, b: str) -> tuple[float, float]:
        """The difference of two choices' metrics and its standard error over the batches."""
        pairs = [x - y for x, y in zip(self.metric.get(a, []), self.metric.get(b, []), strict=True)]
        if len(pairs) < 2:
            return (pairs[0] if pairs else 0.0), float("inf")
        rows = torch.tensor(pairs, dtype=torch.float64)
        return float(rows.mean()), float(rows.std() / len(pairs) ** 0.5)

    def compare(
        self,
        model: nn.Module,
        modules: dict[str, _BatchNorm],
        fresh: Fresh,
        batches: list[Any],
        forward_fn: Callable[..., Any] | None,
        metric: Metric | None,
    ) -> None:
        """Run the batches under each choice."""
        gaps: list[tuple[float, float]] = []
        active = {name: m for name, m in modules.items() if not is_frozen(m)}
        self.batches = len(batches)
        paired = {index * len(batches) // PAIRS for index in range(PAIRS)} if metric else set()
        kept: list[tuple[Any, Any]] = []
        for index, batch in enumerate(batches):
            with by_batch(model, active):
                trained = call(model, batch, forward_fn)
            with evaluating(model), swapped(modules, fresh):
                renewed = call(model, batch, forward_fn)
            gap = distance(renewed, trained)
            gaps += [gap] if gap else []
            if metric is None:
                continue
            with evaluating(model):
                outputs = {"stored": call(model, batch, forward_fn), "batch": trained, "recalibrated": renewed}
            with torch.no_grad():
                for name, output in outputs.items():
                    self.metric.setdefault(name, []).append(float(metric(output, batch)))
            self.weights.append(count_samples(batch))
            kept += [(renewed, batch)] if index in paired else []
        power = sum(p for _, p in gaps)
        self.recalibrated_gap = (sum(g for g, _ in gaps) / power) ** 0.5 if power > 0 else None
        if metric is not None:
            self._guess(kept, metric)

    def _guess(self, kept: list[tuple[Any, Any]], metric: Metric) -> None:
        """The metric of outputs that belong to other batches: what knowing nothing gives."""
        half = len(kept) // 2
        values = []
        with torch.no_grad():
            for index, (_, batch) in enumerate(kept):
                output, other = kept[(index + half) % len(kept)]
                if half and count_samples(other) == count_samples(batch):
                    values.append(float(metric(output, batch)))
        self.chance = sum(values) / len(values) if values else None

    def nearer_to_chance(self, a: str, b: str) -> bool:
        """Whether choice a is the worse one, whichever way the metric goes."""
        first, second = self.mean(a), self.mean(b)
        if first is None or second is None or self.chance is None:
            return False
        return abs(first - self.chance) < abs(second - self.chance)


@contextmanager
def by_batch(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Layers normalise with the batch, all else is in eval, nothing moves: `collecting` without collecting."""
    tracks = {layer: layer.track_running_stats for layer in layers.values()}
    with evaluating(model):
        try:
            for layer in tracks:
                layer.training, layer.track_running_stats = True, False
            yield
        finally:
            for layer, flag in tracks.items():
                layer.track_running_stats = flag


@contextmanager
def swapped(modules: dict[str, _BatchNorm], fresh: Fresh, names: Iterable[str] | None = None) -> Iterator[None]:
    """Fresh statistics in the named layers (all), the stored ones to the bit afterwards."""
    chosen = list(fresh if names is None else names)
    before = {n: (modules[n].running_mean.clone(), modules[n].running_var.clone()) for n in chosen}  # pyright: ignore
    try:
        with torch.no_grad():
            for name in chosen:
                write(modules[name], *fresh[name])
        yield
    finally:
        with torch.no_grad():
            for name, pair in before.items():
                write(modules[name], *pair)


def write(module: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Overwrite a layer's statistics in place."""
    module.running_mean.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]
    module.running_var.copy_(var)  # pyright: ignore[reportOptionalMemberAccess]


def distance(output: Any, reference: Any) -> tuple[float, float] | None:
    """Squared difference from, and squared size of, the reference's first floating output."""
    a, b = first_output(output), first_output(reference)
    if a is None or b is None or a.shape != b.shape:
        return None
    return float((a - b).double().square().sum()), float(b.double().square().sum())


def first_output(output: Any) -> Tensor | None:
    """The first floating tensor in what a model returned."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((t for t in map(first_output, items) if t is not None), None)
