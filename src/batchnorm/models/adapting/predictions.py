"""What a classifier predicts under two choices of statistics, as evidence for one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """Predictions under one choice of statistics.

    confidence is the mean largest probability. information is the mutual information of sample and class as a
    share of log(classes): 0 where every sample gets the same answer, 1 where all classes are told apart for sure.
    histogram is the share of samples that each class gets.
    """

    confidence: float
    information: float
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """Predictions under the stored and under the adapted statistics, for the same samples.

    gain is the mean difference of the confidence, paired by sample, with its standard error; agreement the share
    of samples that get the same class.
    """

    stored: Predictions
    adapted: Predictions
    agreement: float
    gain: float
    standard_error: float

    def __str__(self) -> str:
        """The numbers in words."""
        return (
            f"confidence {self.stored.confidence:.2f} with the stored statistics and {self.adapted.confidence:.2f} "
            f"adapted, largest class {max(self.stored.histogram):.0%} and {max(self.adapted.histogram):.0%}, "
            f"{self.agreement:.0%} of the predictions agree"
        )


def compare(stored: Sequence[Any], adapted: Sequence[Any]) -> Compared | None:
    """The outputs of each batch under both; None where they are no logits of two or more classes, `(N, classes)`.

    An output may be a tensor or hold one as its attribute or item `logits`.
    """
    before, after = _probabilities(stored), _probabilities(adapted)
    if before is None or after is None or before.shape != after.shape:
        return None
    difference = after.max(1).values - before.max(1).values
    same = before.argmax(1) == after.argmax(1)
    error = float(difference.std(correction=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return Compared(_of(before), _of(after), float(same.double().mean()), float(difference.mean()), error)


def _probabilities(outputs: Sequence[Any]) -> Tensor | None:
    logits = [_logits(output) for output in outputs]
    found = [z for z in logits if z is not None]
    if not found or len(found) < len(logits) or len({z.shape[1] for z in found}) > 1:
        return None
    p = torch.cat(found).softmax(1)
    return p if bool(torch.isfinite(p).all()) else None


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, dict):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return None
    return output.detach().double()


def _of(p: Tensor) -> Predictions:
    classes = p.shape[1]
    information = _entropy(p.mean(0)) - _entropy(p)
    counts = torch.bincount(p.argmax(1), minlength=classes).double() / len(p)
    return Predictions(
        float(p.max(1).values.mean()), max(float(information), 0.0) / math.log(classes), tuple(counts.tolist())
    )


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1).mean()
