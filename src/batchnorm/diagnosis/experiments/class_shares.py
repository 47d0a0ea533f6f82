"""Whether classes have other shares in the evaluation data, and what they explain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from batchnorm.diagnosis.experiments.sample import Sample
from batchnorm.diagnosis.experiments.spectra import by_spectrum
from batchnorm.diagnosis.experiments.values import EXPLAINS
from batchnorm.diagnosis.experiments.views import View

SCALE = 0.25  # log ratio of the standard deviations
CLASSES = 0.15  # total variation between the predicted classes


def only_classes(one: View, other: View, rough: float, training: Sample, evaluation: Sample) -> bool:
    """Whether other shares of the classes (predicted, if there are no labels) explain it: within each, inputs agree."""
    a, b = one.grid.double(), other.grid.double()
    if not training.classes or not evaluation.classes:
        return False
    # Predictions follow what was done to the inputs; labels, where there are any, do not.
    labelled = bool(training.labels and evaluation.labels)
    first, second = (torch.cat(s.labels if labelled else s.classes) for s in (training, evaluation))
    if len(first) != len(a) or len(second) != len(b):
        return False
    if variation(torch.bincount(first), torch.bincount(second)) < CLASSES:
        return False
    std = a.std(0).square().mean().sqrt().clamp_min(1e-12)

    def moved(x: Tensor, y: Tensor) -> float:
        noise = (x.var(0) / len(x) + y.var(0) / len(y)) / std.square()
        return float((((y.mean(0) - x.mean(0)) / std).square() - noise).mean())

    within, weight, wide = 0.0, 0.0, []
    for label in torch.unique(second):
        x, y = a[first == label], b[second == label]
        if len(x) < 8 or len(y) < 8:
            continue
        within += len(y) * moved(x, y)
        wide += [float((y.var(0).sum() / x.var(0).sum().clamp_min(1e-30)).log()) / 2] * len(y)
        weight += len(y)
    if weight < 0.5 * len(b):
        return False
    shift, left = (math.sqrt(max(v, 0.0)) for v in (moved(a, b), within / weight))
    if left >= max(0.5 * shift, 0.1) or abs(sum(wide) / len(wide)) >= SCALE:
        return False
    members = [(torch.where(first == label)[0], int((second == label).sum())) for label in torch.unique(second)]
    rows = torch.cat([at[torch.arange(count) % len(at)] for at, count in members if len(at)])
    return by_spectrum(View(one.x[rows]), other)[1] <= EXPLAINS * rough


def other_shares(training: Sample, evaluation: Sample) -> tuple[Tensor, float] | None:
    """Where labels have other shares: the log ratio by class, and what part of the loss of accuracy they explain.

    Explained is what comes back when evaluation samples are weighed as if they had the training's shares.
    """
    samples = training, evaluation
    if not all(s.labels and sum(map(len, s.labels)) == sum(map(len, s.classes)) for s in samples):
        return None
    ours, theirs = (torch.cat(s.labels) for s in samples)
    right, rights = ((torch.cat(s.classes) == torch.cat(s.labels)).double() for s in samples)
    size = int(torch.cat([ours, theirs]).max()) + 1
    counts = [torch.bincount(v, minlength=size).double() for v in (ours, theirs)]
    if variation(*counts) <= max(CLASSES, (size * (1 / len(ours) + 1 / len(theirs))) ** 0.5):
        return None
    p, q = ((v + 0.5) / (v + 0.5).sum() for v in counts)
    weight = (p / q)[theirs]
    lost, back = right.mean() - rights.mean(), (weight * rights).sum() / weight.sum() - rights.mean()
    return (q / p).log(), float(back / lost) if lost > 0 else 0.0


def variation(a: Tensor, b: Tensor) -> float:
    """The total variation between two counts of classes."""
    size = max(len(a), len(b))
    p, q = (functional.pad(v.double(), (0, size - len(v))) for v in (a, b))
    return float((p / p.sum() - q / q.sum()).abs().sum() / 2)
