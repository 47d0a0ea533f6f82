"""What passes into a layer, call by call: how alike the batches are, how many kinds, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

HISTOGRAM = (-5.0, 5.0, 40)  # in stored standard deviations
SAMPLE = 65536  # values a batch in the histogram
DRAWN = 4  # batches in the histogram


@dataclass
class Inputs:
    """Means per channel and samples of every call, in order: `means[batch][call]`.

    single is the number of the first batch, from 1, that had one value per channel.
    """

    means: list[list[Tensor]] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    finite: bool = True
    single: int | None = None
    histogram: Tensor | None = None
    below: int = 0
    above: int = 0

    def start_batch(self) -> None:
        """What follows belongs to a new batch."""
        self.means.append([])
        self.samples.append([])

    def add(self, x: Tensor, by_sample: tuple[Tensor, Tensor] | None, mean: Tensor, scale: Tensor) -> None:
        """Take note of one input `(N, C, *)` and its samples' means; mean and scale are the stored ones."""
        if x.numel() == 0 or by_sample is None:
            return
        means, count = by_sample
        pooled = ((means * count[:, None]).sum(0) / count.sum()).cpu()
        self.finite = self.finite and bool(torch.isfinite(pooled).all())
        self.means[-1].append(pooled)
        self.samples[-1].append(len(means))
        if len(self.means) <= DRAWN and mean.numel() == x.shape[1]:
            self._count(x, mean.to(x.device), scale.to(x.device))

    def is_single(self, x: Tensor) -> bool:
        """Whether there is one value a channel, which stock layers refuse in train mode."""
        if x.numel() and x.numel() == x.shape[1]:
            self.single = len(self.means) if self.single is None else self.single
            return True
        return False

    def _count(self, x: Tensor, mean: Tensor, scale: Tensor) -> None:
        # Whole samples, spread over the batch, before anything is computed with them.
        rows = x[:: max(1, x.numel() // SAMPLE)].float()
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = ((rows - mean.float().view(shape)) / scale.float().view(shape)).flatten()
        values = values[:: max(1, values.numel() // SAMPLE)]
        low, high, bins = HISTOGRAM
        counts = torch.histc(values, bins, low, high).cpu()
        self.histogram = counts if self.histogram is None else self.histogram + counts
        self.below += int((values < low).sum())
        self.above += int((values > high).sum())

    def spread(self, sample_var: Tensor) -> tuple[float, int]:
        """How much the batches' means vary, over what batches of exchangeable samples would give, and how many.

        1 for a shuffled loader; `sample_var` is the variance of the samples' own means.
        """
        means = [m[0] for m in self.means if m]
        if len(means) < 3:
            return 1.0, len(means)
        size = sum(s[0] for s in self.samples if s) / len(means)
        observed = torch.stack(means).var(0, correction=1)
        expected = sample_var / size
        used = expected > 0
        if not bool(used.any()):
            return 1.0, len(means)
        return float((observed[used] / expected[used]).mean()), len(means)

    def between_calls(self, var: Tensor) -> float:
        """The part of the variance that lies between the calls of one forward: two domains, time steps, tasks."""
        rows = [m for m in self.means if len(m) > 1]
        if not rows:
            return 0.0
        calls = min(len(m) for m in rows)
        by_call = torch.stack([torch.stack([m[k] for m in rows]).mean(0) for k in range(calls)])
        return float((by_call.var(0, correction=0) / var.clamp_min(1e-30)).clamp(max=1).mean())

    def two_groups(self) -> tuple[float, list[bool]]:
        """How well two groups explain the batches' means, and which batches are in the second.

        0.64 for a normal distribution, 1 for two points.
        """
        means = [m[0] for m in self.means if m]
        if len(means) < 6:
            return 0.0, []
        table = torch.stack(means)
        scores = torch.linalg.svd(table - table.mean(0), full_matrices=False)
        line = scores.U[:, 0] * scores.S[0]
        ordered = line.sort().values
        total = float(ordered.square().sum())
        best, at = 0.0, 0.0
        for cut in range(2, len(line) - 1) if total else ():
            a, b = ordered[:cut].mean(), ordered[cut:].mean()
            between = cut * a**2 + (len(line) - cut) * b**2
            if float(between) > best * total:
                best, at = float(between) / total, float(ordered[cut - 1])
        return best, (line > at).tolist()
