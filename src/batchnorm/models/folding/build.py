"""Make the folded model from a copy, and find the folds that do not hold on the example."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from batchnorm.failures import reason
from batchnorm.models.folding.absorb import PadChannels, absorb_after, absorb_before, pad_values
from batchnorm.models.folding.plan import Fold
from batchnorm.models.folding.run import NONE, Difference, Example, compare, difference, outputs_of

# Relative to the largest value: float64 leaves no room for anything but rounding.
_LIMIT = {True: 1e-8, False: 1e-3}


def build(model: nn.Module, folds: list[Fold], *, double: bool = False) -> nn.Module:
    """A copy of the model in eval with these folds made."""
    folded = copy.deepcopy(model).eval()
    folded = folded.double() if double else folded
    modules: dict[str, Any] = dict(folded.named_modules())
    for fold in folds:
        if fold.kind == "keep" or fold.affine is None:
            continue
        affine, layer = fold.affine, modules[fold.name]
        device = next(iter(layer.buffers())).device
        scale, shift = affine.scale, affine.shift
        new: nn.Module = nn.Identity()
        if fold.kind == "affine":
            new = affine.module(torch.float64 if double else affine.dtype).to(device)
        elif fold.kind == "after":
            new = nn.Identity() if affine.tail is None else copy.deepcopy(affine.tail)
            for name in fold.maps:
                absorb_after(modules[name], scale, shift)
        else:
            for name in fold.maps:
                absorb_before(modules[name], scale, shift)
                if name in fold.padded:
                    folded = put(folded, modules[name], _padded(modules[name], pad_values(scale, shift)))
        folded = put(folded, layer, new.eval())
    return folded


def _padded(conv: Any, values: Any) -> nn.Module:
    """The convolution behind a padding of its own."""
    pad = PadChannels(list(conv._reversed_padding_repeated_twice), values.to(conv.weight))
    conv.padding = tuple(0 for _ in conv.kernel_size)
    conv._reversed_padding_repeated_twice = [0] * len(pad.padding)
    return nn.Sequential(pad, conv)


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """A module in the place of another, under every name it has; the root's place too."""
    if model is old:
        return new
    inside = set(new.modules())
    for module in list(model.modules()):
        if module not in inside:
            for name, child in module._modules.items():
                if child is old:
                    module._modules[name] = new
    return model


def verified(model: nn.Module, folds: list[Fold], example: Example) -> tuple[list[Fold], float, str]:
    """The folds that hold on the example, the others left with the reason; and the float64 error of the output.

    The error is NaN where the model cannot run in float64; folds are then held to a looser limit, and the
    last value says why.
    """
    names = {name for fold in folds for name in (fold.name, *fold.maps)}
    why = ""
    try:
        was, held = outputs_of(copy.deepcopy(model).eval().double(), example, names, double=True)
        double = True
    except Exception as error:
        # A model may cast inside, or call what has no float64.
        why = reason(error.__cause__ or error)
        was, held = outputs_of(copy.deepcopy(model).eval(), example, names)
        double = False
    while True:
        try:
            output, now = outputs_of(build(model, folds, double=double), example, watched(folds), double=double)
        except Exception as error:
            folds = _drop(
                folds,
                _alone(model, folds, example, was, double),
                f"the folded model raised {reason(error.__cause__ or error)}",
            )
            continue
        wrong = next((f for f in folds if not _small(gap_of(f, folds, held, now), double)), None)
        if wrong is not None:
            gap = gap_of(wrong, folds, held, now)
            folds = _drop(
                folds, [wrong], f"on the example its output would differ by {gap.relative:.1e} of the largest"
            )
            continue
        whole = compare(was, output)
        if _small(whole, double):
            return folds, whole.relative if double else torch.nan, why
        words = f"on the example the model's output would differ by {whole.relative:.1e} of the largest"
        folds = _drop(folds, _alone(model, folds, example, was, double), words)


def watched(folds: list[Fold]) -> set[str]:
    """The modules to compare."""
    return {name for fold in folds for name in fold.watched(folds)}


def gap_of(fold: Fold, folds: list[Fold], held: dict[str, Any], now: dict[str, Any]) -> Difference:
    """How far the outputs that a fold answers for moved."""
    worst = NONE
    for name in fold.watched(folds):
        if len(held[name]) != len(now[name]):
            return Difference(torch.inf, torch.inf)
        for a, b in zip(held[name], now[name], strict=True):
            worst = worst.worse(difference(a, b))
    return worst


def _small(gap: Difference, double: bool) -> bool:
    return gap.relative <= _LIMIT[double] or gap.absolute <= 1e-12


def _alone(model: nn.Module, folds: list[Fold], example: Example, was: Any, double: bool) -> list[Fold]:
    """The folds that change the output when made alone; all, where none does."""
    wrong: list[Fold] = []
    moved = [fold for fold in folds if fold.kind != "keep"]
    for fold in moved:
        try:
            output, _ = outputs_of(build(model, [fold], double=double), example, (), double=double)
        except Exception:
            wrong.append(fold)
            continue
        if not _small(compare(was, output), double):
            wrong.append(fold)
    return wrong or moved


def _drop(folds: list[Fold], wrong: list[Fold], reason: str) -> list[Fold]:
    """A move becomes an affine map, an affine map becomes the layer it was."""
    weaker = {"after": "affine", "before": "affine", "affine": "keep"}
    return [replace(f, kind=weaker[f.kind], maps=(), padded=(), reason=reason) if f in wrong else f for f in folds]
