"""How evaluation inputs differ from the training inputs, and what was done to them: the least that explains it."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.changes import Change, interpolated, resized
from batchnorm.diagnosis.experiments.class_shares import only_classes
from batchnorm.diagnosis.experiments.sample import Sample, cropped
from batchnorm.diagnosis.experiments.spectra import by_blocks, by_spectrum, is_cut
from batchnorm.diagnosis.experiments.tokens import tokens
from batchnorm.diagnosis.experiments.values import SURE, apart, explained
from batchnorm.diagnosis.experiments.views import View

PADDING = 0.1  # of the positions


def difference(training: Sample, evaluation: Sample) -> Change:
    """Compare the two: tokens, size, padding, values, spectrum, in that order; unless other classes explain it."""
    words = tokens(training, evaluation)
    x, y = training.table, evaluation.table
    if x is None or y is None or x.dim() != y.dim() or x.shape[1] != y.shape[1]:
        return _said([Change(words)] if words else [*_padding(training, evaluation)])
    found: list[Change] = []
    if x.dim() > 2 and not training.sizes() & evaluation.sizes() and len(training.sizes()) == 1:
        middle = cropped([x, y], middle=True)
        cut = is_cut(middle, [interpolated(v, middle[0].shape[2:]) for v in (x, y)])
        found.append(resized(x, y, cut))
        x, y = middle if cut else (x, interpolated(y, x.shape[2:]))
    elif x.shape != y.shape:
        x, y = cropped([x, y])
    found += _padding(training, evaluation) or _dead(x, y)
    padded = bool(found) and "padding" in found[-1].words
    a, b = View(x), View(y)
    blocks = None if found else by_blocks(a, b)
    if blocks is not None:
        found.append(blocks)
        a = blocks.pair(a, b)[0]
    values, rough = (0.0, (None, 0.0)) if padded else (apart(a, b), by_spectrum(a, b))
    if values > 0 or (rough[1] > 0 and not found):
        by_class = only_classes(a, b, rough[1], training, evaluation)
        if by_class and not found:
            return Change("the classes have other shares", by_class=True)
        # What resizing or compressing did to the spectrum is no change of its own.
        found += [] if by_class else explained(a, b, values, (None, 0.0) if found else rough)
    return _said(found)


def _said(found: list[Change]) -> Change:
    """Changes one after the other, as one."""
    if not found:
        return Change()
    applied, undone = [c.apply for c in found], [c.undo for c in reversed(found)]
    return Change(
        "; ".join(c.words for c in found),
        apply=None if None in applied else lambda v: reduce(_then, applied, v),
        undo=None if None in undone else lambda v: reduce(_then, undone, v),
        code=found[0].code if len(found) == 1 else "",
        usual=all(c.usual for c in found),
        among=found[0].among if len(found) == 1 else (),
    )


def _then(v: Tensor, function: Any) -> Tensor:
    return function(v)


def _padding(training: Sample, evaluation: Sample) -> list[Change]:
    """Another share of padded positions, or the other side."""
    a, b = torch.cat(training.padding).double(), torch.cat(evaluation.padding).double()
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    step = (b.mean(0) - a.mean(0)).abs()
    if bool((step > torch.clamp(SURE * error, min=PADDING)).any()):
        before, behind = (f"{v[0]:.0%} in front and {v[1]:.0%} behind" for v in (b.mean(0), a.mean(0)))
        return [Change(f"padding takes up {before} of evaluation inputs, {behind} of training inputs")]
    return []


def _dead(x: Tensor, y: Tensor) -> list[Change]:
    """Positions where all evaluation inputs are alike, and training inputs are not."""
    one, other = ((v == v[:1]).flatten(2).all(1).all(0).double().mean() if v.dim() > 2 else 0.0 for v in (x, y))
    if other - one <= PADDING:
        return []
    return [
        Change(f"{other:.0%} of the positions are the same in all evaluation inputs (padding), {one:.0%} in training")
    ]
