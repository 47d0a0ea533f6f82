"""What a classifier predicts under several choices of statistics, as evidence for one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm.models.outputs import logits


@dataclass(frozen=True)
class Predictions:
    """Predictions under one choice of statistics.

    confidence is the mean largest probability; gain its rise over the stored statistics', agreement the share of
    samples that get the same class as with them. evenness is the entropy of the mean prediction, as a share of
    log(classes), with what so few samples lack by chance. clusters tells whether the samples fall into classes: the
    log ratio of the information (of sample and class) to that of one normal cloud of logits with the same mean and
    covariance, 0 for such a cloud; sharp_clusters the same for logits twice as large; excess the confidence
    above the cloud's. histogram is the share of samples that each class gets.
    """

    confidence: float
    gain: float
    agreement: float
    evenness: float
    clusters: float
    sharp_clusters: float
    excess: float
    histogram: tuple[float, ...]

    def __str__(self) -> str:
        """The numbers in words."""
        return (
            f"confidence {self.confidence:.2f}, largest class {max(self.histogram):.0%}, clusters {self.clusters:.2f}, "
            f"{self.agreement:.0%} as stored"
        )


def predictions(outputs: Mapping[str, Sequence[Any]]) -> dict[str, Predictions] | None:
    """Of the outputs of all batches under each choice, the stored statistics' first.

    None where they are no logits of two or more classes, `(N, classes)`. An output may be a tensor or hold one as its
    attribute or item `logits`.
    """
    logits = {name: _all_logits(found) for name, found in outputs.items()}
    if any(z is None for z in logits.values()) or len({z.shape for z in logits.values() if z is not None}) != 1:
        return None
    stored = next(iter(logits.values()))
    return {name: _of(z, stored) for name, z in logits.items() if z is not None and stored is not None}


def _all_logits(outputs: Sequence[Any]) -> Tensor | None:
    found = [z for z in map(_logits, outputs) if z is not None]
    if not found or len(found) < len(outputs) or len({z.shape[1] for z in found}) > 1:
        return None
    z = torch.cat(found)
    return z if bool(torch.isfinite(z).all()) else None


def _logits(output: Any) -> Tensor | None:
    output = logits(output)
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return None
    return output.detach().double().cpu()


def _of(z: Tensor, stored: Tensor) -> Predictions:
    cloud, (count, classes) = _cloud(z), z.shape
    p, before = z.softmax(1), stored.softmax(1)
    confidence = float(p.amax(1).mean())
    lacking = (classes - 1) / (2 * count)
    return Predictions(
        confidence,
        confidence - float(before.amax(1).mean()),
        float((p.argmax(1) == before.argmax(1)).double().mean()),
        float(_entropy(p.mean(0)) + lacking) / math.log(classes),
        _ratio(z, cloud),
        _ratio(2 * z, 2 * cloud),
        confidence - float(cloud.softmax(1).amax(1).mean()),
        tuple((torch.bincount(p.argmax(1), minlength=classes).double() / count).tolist()),
    )


def _cloud(z: Tensor) -> Tensor:
    """As many normal logits with the same mean and covariance; the same for the same logits."""
    root = torch.linalg.qr(z - z.mean(0)).R / math.sqrt(len(z))
    draw = torch.Generator().manual_seed(0)
    return z.mean(0) + torch.randn(len(z), len(root), generator=draw, dtype=torch.float64) @ root


# Shares of log(classes) below this are chance.
_NO_INFORMATION = 0.02


def _ratio(z: Tensor, cloud: Tensor) -> float:
    return math.log((_information(z) + _NO_INFORMATION) / (_information(cloud) + _NO_INFORMATION))


def _information(z: Tensor) -> float:
    """Of sample and class, as a share of log(classes): 0 for one answer to all, 1 for all classes told for sure."""
    p = z.softmax(1)
    return max(float(_entropy(p.mean(0)) - _entropy(p)), 0.0) / math.log(z.shape[1])


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1).mean()
