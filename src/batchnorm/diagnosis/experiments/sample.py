"""The model's inputs that are kept, as far as there is room, to be compared with others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.diagnosis.experiments.padding import padded_positions
from batchnorm.diagnosis.experiments.scores import labels
from batchnorm.models.batches import tensors

ROWS = 1024  # samples that are kept
KEPT_BYTES = 16 << 20
FEWEST = 8  # samples


@dataclass
class Sample:
    """The model's inputs as far as there is room, their classes, predicted and given, and the padding on each side."""

    inputs: list[Tensor] = field(default_factory=list)
    classes: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    padding: list[Tensor] = field(default_factory=list)
    seen: int = 0
    count: int = 0
    bytes: int = 0
    stride: int = 1

    def add(self, batch: Any, output: Tensor | None) -> None:
        """One batch; where there is no more room, of all batches so far every second sample is kept."""
        x = next(tensors(batch), None)
        if x is None or x.is_complex() or x.dtype == torch.bool or x.dim() < 2 or not x.numel():
            return
        labelled = output is not None and output.dim() == 2 and output.shape[0] == x.shape[0] and output.shape[1] > 1
        rows = slice(-self.seen % self.stride, None, self.stride)
        self.seen += len(x)
        if labelled and output is not None:
            self.classes.append(output.argmax(1)[rows].cpu())
            given = labels(output, batch)
            self.labels += [] if given is None else [given[rows].cpu()]
        self.padding.append(_sides(padded_positions(batch), len(x))[rows])
        self.inputs.append(x.detach()[rows].cpu().clone())
        self.count += len(self.inputs[-1])
        self.bytes += self.inputs[-1].numel() * x.element_size()
        if self.count > 2 * ROWS or (self.count > FEWEST and self.bytes > KEPT_BYTES):
            self.stride *= 2
            for name in ("inputs", "classes", "labels", "padding"):
                at, kept = 0, []
                for part in getattr(self, name):
                    kept.append(part[at % 2 :: 2].clone())
                    at += len(part)
                setattr(self, name, [part for part in kept if len(part)])
            self.count, self.bytes = (self.count + 1) // 2, self.bytes // 2

    @property
    def table(self) -> Tensor | None:
        """All inputs, cropped to the least size of any batch; None where they are too few, or no numbers."""
        kinds = {(t.dim(), t.shape[1] if t.dim() > 2 else 0) for t in self.inputs}
        if len(kinds) != 1 or self.count < FEWEST:
            return None
        if not self.inputs[0].is_floating_point() and self.inputs[0].dim() < 4:
            return None
        x = torch.cat(cropped(self.inputs)).float()
        finite = torch.isfinite(x.flatten(1)).all(1)
        return x[finite] if int(finite.sum()) >= FEWEST else None

    def sizes(self) -> set[torch.Size]:
        """Of positions, of all batches."""
        return {t.shape[2:] for t in self.inputs if t.dim() > 2}


def cropped(parts: list[Tensor], middle: bool = False) -> list[Tensor]:
    """All to the least size of any, from the start or from the middle."""
    least = [min(sizes) for sizes in zip(*(t.shape[1:] for t in parts), strict=True)]
    for axis, size in enumerate(least, 1):
        parts = [t.narrow(axis, (t.shape[axis] - size) // 2 if middle else 0, size) for t in parts]
    return parts


def _sides(valid: Tensor | None, samples: int) -> Tensor:
    """The shares of padded positions in front of each sample's data and behind them."""
    if valid is None or valid.dim() != 2:
        return torch.zeros(samples, 2)
    before = valid.long().cumsum(1) == 0
    return torch.stack([before.float().mean(1), (~valid & ~before).float().mean(1)], 1).cpu()
