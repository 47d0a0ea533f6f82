"""What a layer receives: pooled moments with the errors of both, from one reading of each input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.layers import Moments


@dataclass
class Received:
    """The values of one layer, pooled over calls; samples are the independent units, positions in one are not.

    values are the moments of all values, sample_means those of the samples' means; fewest_values and
    fewest_samples what the smallest call had per channel. sums are, per channel, the number of samples
    and the sums of d, q, d^2, q^2 and q d, with d a sample's mean deviation from the reference and q its
    mean squared deviation.
    """

    reference: Tensor | None = None
    values: Moments | None = None
    sample_means: Moments | None = None
    calls: int = 0
    fewest_values: float = float("inf")
    fewest_samples: int = 1 << 60
    sums: Tensor | None = field(default=None, repr=False)

    def add(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Pool one input `(N, C, *)`; weight `(N, 1, *)` says which positions count. Gives its samples' means."""
        if x.numel() == 0:
            return None
        means, spreads, count = _by_sample(x, weight)
        if self.reference is None or self.reference.numel() != x.shape[1]:
            self.reference = means[0].clone()
        used = count > 0
        means, spreads, count = means[used], spreads[used], count[used]
        if not len(means):
            return None
        total = count.sum()
        mean = (count[:, None] * means).sum(0) / total
        m2 = (count[:, None] * (spreads + (means - mean).square())).sum(0)
        self._pool(Moments(total.expand_as(mean), mean, m2), _plain(means))
        d = means - self.reference.to(means)
        q = spreads + d.square()
        part = torch.stack([torch.ones_like(d), d, q, d * d, q * q, q * d]).sum(1)
        self.sums = part if self.sums is None else self.sums + part
        self.calls += 1
        self.fewest_values = min(self.fewest_values, float(total))
        self.fewest_samples = min(self.fewest_samples, len(means))
        return means, count

    def _pool(self, values: Moments, sample_means: Moments) -> None:
        self.values = values if self.values is None else self.values.merge(values)
        before = self.sample_means
        self.sample_means = sample_means if before is None else before.merge(sample_means)

    @property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """The mean and the unbiased variance, as a layer stores them; None where nothing was received."""
        return None if self.values is None else (self.values.mean, self.values.var(1))

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, per channel."""
        if self.sample_means is None:
            return torch.tensor(torch.nan)
        return (self.sample_means.var(1) / self.sample_means.count).sqrt()

    @property
    def variance_error(self) -> Tensor:
        """Of the variance, per channel: from the samples' mean squared deviations, so from the fourth moment."""
        if self.sums is None:
            return torch.tensor(torch.nan)
        n, d, q, dd, qq, qd = self.sums
        shift = d / n
        # The variance is E[q] - E[d]^2; to first order a sample moves it by q - 2 E[d] d.
        mean = q / n - 2 * shift * shift
        square = (qq - 4 * shift * qd + 4 * shift.square() * dd) / n
        spread = (square - mean.square()).clamp_min(0)
        return torch.where(n > 1, (spread / (n - 1).clamp_min(1)).sqrt(), torch.nan)

    @property
    def effective_values(self) -> float:
        """How many independent values a channel has in the smallest call: neighbouring positions are alike."""
        if self.values is None or self.sample_means is None:
            return self.fewest_values
        between = float(self.sample_means.var(0).sum())
        if between <= 0:
            return self.fewest_values
        return min(self.fewest_values, self.fewest_samples * float(self.values.var(0).sum()) / between)


def _plain(rows: Tensor) -> Moments:
    mean = rows.mean(0)
    count = torch.full_like(mean, len(rows))
    return Moments(count, mean, (rows - mean).square().sum(0))


def _by_sample(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Per sample and channel the mean and the biased variance over positions, and how many positions count."""
    samples = x.shape[0]
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if weight is not None:
        flat, w = wide.flatten(2).double(), weight.expand(samples, 1, *x.shape[2:]).reshape(samples, 1, -1).double()
        flat = torch.where(w > 0, flat, 0.0)
        count = w.sum(2)[:, 0]
        safe = count.clamp_min(1e-30)[:, None]
        mean = (flat * w).sum(2) / safe
        return mean, ((flat - mean[:, :, None]).square() * w).sum(2) / safe, count
    if x.dim() == 2:
        mean = wide.double()
        return mean, torch.zeros_like(mean), mean.new_ones(samples)
    # A group a sample: torch.var_mean takes 50 times as long on a CPU.
    raw = kernels.select(wide).reduce(wide, None, samples)
    count = x.numel() / (samples * x.shape[1])
    return raw.mean, raw.m2 / count, raw.mean.new_full((samples,), count)
