"""Which layer does it: each layer's stored statistics put, alone, into the network with right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.diagnosis.model.choices import Fresh, distance, swapped
from batchnorm.diagnosis.model.layer import LayerEvidence
from batchnorm.models.batches import call
from batchnorm.models.state import evaluating

EXACT = 64  # layers measured one by one; above, groups are halved
NOTHING = 1e-3  # relative distance of outputs below which a group of layers is cleared together


def attribute(
    model: nn.Module,
    modules: dict[str, _BatchNorm],
    fresh: Fresh,
    batch: Any,
    forward_fn: Callable[..., Any] | None,
    layers: dict[str, LayerEvidence],
    exact: int = EXACT,
) -> int:
    """Fill in damage and share of every layer that has fresh statistics; returns the forwards it took.

    With fresh statistics everywhere the output is the reference. A layer's damage is the relative
    distance from it when that layer alone has its stored statistics again: one pass a layer, whatever
    is wrong with the others. Above `exact` layers, groups are tried together and halved; a group that
    moves nothing is cleared in one pass. (Putting one fresh layer into the stored network instead
    would hide each of several wrong layers behind the others.)
    """
    names = list(fresh)
    passes = 0
    with evaluating(model), swapped(modules, fresh):
        reference = call(model, batch, forward_fn)
        old = {name: (layers[name].mean, layers[name].var) for name in names}

        def damage(group: list[str]) -> float | None:
            nonlocal passes
            passes += 1
            with swapped(modules, {name: old[name] for name in group}):
                moved = distance(call(model, batch, forward_fn), reference)
            if moved is None or moved[1] == 0:
                return None
            # NaN from poisoned statistics is as far as it gets.
            return (moved[0] / moved[1]) ** 0.5 if moved[0] == moved[0] else float("inf")

        groups = [[name] for name in names] if len(names) <= exact else [names]
        while groups:
            group = groups.pop()
            found = damage(group)
            if found is None:
                return passes
            if len(group) == 1:
                layers[group[0]].damage = found
            elif found < NOTHING:
                for name in group:
                    layers[name].damage = 0.0
            else:
                half = len(group) // 2
                groups += [group[:half], group[half:]]
    _share(list(layers.values()))
    return passes


def _share(layers: list[LayerEvidence]) -> None:
    measured = [layer for layer in layers if layer.damage is not None]
    broken = [layer for layer in measured if layer.damage == float("inf")]
    total = sum((layer.damage or 0.0) ** 2 for layer in measured) if not broken else 0.0
    for layer in measured:
        if broken:
            layer.share = 1 / len(broken) if layer in broken else 0.0
        else:
            layer.share = (layer.damage or 0.0) ** 2 / total if total > 0 else 0.0
