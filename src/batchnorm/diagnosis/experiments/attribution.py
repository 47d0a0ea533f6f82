"""Which layer does it: each layer's stored statistics put, alone, into the network with right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from batchnorm.diagnosis.experiments.conditions import Layers, Statistics, modes, swapped
from batchnorm.diagnosis.experiments.slices import rows, sliceable
from batchnorm.models.batches import call, count_samples
from batchnorm.models.outputs import first_output

FEWEST = 2  # samples of the batch that is used


def attribute(
    model: nn.Module,
    layers: Layers,
    right: Statistics,
    stored: Statistics,
    order: list[str],
    batch: Any,
    forward_fn: Callable[..., Any] | None,
    samples: int,
) -> tuple[dict[str, float], int]:
    """The damage of layers, in this order as far as the samples go, and how many samples each was measured on.

    With right statistics everywhere the output is the reference. A layer's damage is the relative
    distance from it when that layer alone has its stored statistics again: one pass a layer, whatever
    is wrong with the others. (Putting one right layer into the stored network instead would hide each of
    several wrong layers behind the others.) Where one batch a layer is more than `samples` allow, fewer
    samples of it are used, then fewer layers.
    """
    size = count_samples(batch)
    used = max(min(size, samples // (len(order) + 1)), min(FEWEST, size))
    if used < size:
        if sliceable(batch, size):
            batch = rows(batch, 0, used)
        else:
            used = size
    most = samples // max(used, 1) - 1
    if most < 1:
        return {}, 0
    found: dict[str, float] = {}
    with modes(model, False), swapped(layers, right):
        reference = first_output(call(model, batch, forward_fn))
        power = 0.0 if reference is None else float(reference.double().square().sum())
        if reference is None or power == 0:
            return {}, 0
        for name in order[:most]:
            with swapped(layers, stored, [name]):
                output = first_output(call(model, batch, forward_fn))
            if output is None or output.shape != reference.shape:
                return {}, 0
            moved = float((output - reference).double().square().sum())
            # NaN from poisoned statistics is as far as it gets.
            found[name] = (moved / power) ** 0.5 if moved == moved else float("inf")
    return found, used


def shares(damage: dict[str, float]) -> dict[str, float]:
    """The part of the sum of all squares; poisoned layers share all of it."""
    broken = [name for name, value in damage.items() if value == float("inf")]
    if broken:
        return {name: 1 / len(broken) if name in broken else 0.0 for name in damage}
    total = sum(value**2 for value in damage.values())
    return {name: value**2 / total if total > 0 else 0.0 for name, value in damage.items()}
