"""Whether the batches could have come in any other order, and the samples in any other batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchnorm.models.recalibration.totals import FEWEST_BATCHES

# The rate of false alarms of each of the two tests.
ALARM = 0.005
_PERMUTATIONS = 1000
_AT_ONCE = 50
_WIDEST = 64
_LONGEST = 512
_NORMAL_QUANTILE = 2.5758


@dataclass
class Alike:
    """How the samples of one layer spread within and between batches, per channel: one-way analysis of variance."""

    count: float = 0.0
    batches: int = 0
    mean: Tensor | None = None
    between_and_within: Tensor | None = None
    within: Tensor | None = None

    def add(self, samples: Tensor) -> None:
        """One batch of per-sample summaries `(N, C)`."""
        n, mean = len(samples), samples.mean(0)
        spread = (samples - mean).square().sum(0)
        if self.mean is None or self.within is None or self.between_and_within is None:
            self.count, self.batches = n, 1
            self.mean, self.between_and_within, self.within = mean, spread, spread
            return
        total = self.count + n
        delta = mean - self.mean
        self.between_and_within = self.between_and_within + spread + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.within = self.within + spread
        self.count, self.batches = total, self.batches + 1

    def grouped(self) -> bool:
        """Whether batch means differ by more than random batches of such samples would.

        The F ratio averaged over channels, against the quantile of one channel: channels that do
        not move together only make it rarer. Wilson and Hilferty's approximation of the quantile.
        """
        if self.batches < FEWEST_BATCHES or self.within is None or self.between_and_within is None:
            return False
        k, free = self.batches - 1, self.count - self.batches
        if free < 1:
            return False
        scale = self.between_and_within.clamp_min(torch.finfo(torch.float64).tiny)
        between = ((self.between_and_within - self.within) / scale).mean() / k
        within = (self.within / scale).mean() / free
        if float(within) <= 0:
            return bool(between > 0)
        a, b = 2 / (9 * k), 2 / (9 * free)
        z = _NORMAL_QUANTILE
        # The quantile of F solves ((1 - b) x - (1 - a)) / sqrt(b x^2 + a) = z in x, its cube root.
        p, q, r = (1 - b) ** 2 - z * z * b, (1 - b) * (1 - a), (1 - a) ** 2 - z * z * a
        if p <= 0 or q * q < p * r:
            return False
        limit = ((q + (q * q - p * r) ** 0.5) / p) ** 3
        return float(between / within) > limit


def ordered(sketches: list[Tensor]) -> bool:
    """Whether the sequence of batches has an order: neighbours alike, or a drift.

    A permutation test on sketches `(layers, d)` of the batches' means and variances, so exact at
    any number of batches and however channels and layers hang together. Four statistics share the
    rate of alarms: the products of neighbours, and the squared partial sums, which see slow
    drifts; of each the sum over layers and the largest of a layer.

    Source: von Neumann (1941) for the first; Kwiatkowski et al. (1992) for the second.
    """
    if len(sketches) < FEWEST_BATCHES:
        return False
    rows = torch.stack(sketches)
    if len(rows) > _LONGEST:
        size = len(rows) // _LONGEST
        rows = rows[: len(rows) // size * size].unflatten(0, (-1, size)).mean(1)
    rows = rows - rows.mean(0)
    # (batches, blocks, columns): a block is the means or the variances of one layer.
    blocks = rows.reshape(len(rows), 2 * rows.shape[1], -1)
    blocks = blocks[..., : max(1, min(blocks.shape[2], _WIDEST // blocks.shape[1]))]
    # Every block weighs the same; the scale does not depend on the order.
    blocks = blocks / blocks.square().sum((0, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    generator = torch.Generator().manual_seed(len(rows))
    seen = _order_statistics(blocks[None])
    above = torch.zeros_like(seen[0])
    for _ in range(_PERMUTATIONS // _AT_ONCE):
        if (above.min() + 1) / (_PERMUTATIONS + 1) > ALARM / len(above):
            return False  # no permutation to come can change that
        orders = torch.rand(_AT_ONCE, len(rows), generator=generator).argsort(1)
        above += (_order_statistics(blocks[orders]) >= seen).sum(0)
    return bool((above.min() + 1) / (_PERMUTATIONS + 1) <= ALARM / len(above))


def _order_statistics(rows: Tensor) -> Tensor:
    """The four statistics of sequences `(sequences, batches, blocks, columns)`: `(sequences, 4)`."""
    neighbours = (rows[:, 1:] * rows[:, :-1]).sum((1, 3))
    drift = rows.cumsum(1).square().sum((1, 3))
    return torch.stack([neighbours.sum(1), neighbours.amax(1), drift.sum(1), drift.amax(1)], 1)
