"""Everything a run remembers of the batches it has seen: additive, so that it merges, stops and resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from batchnorm.kernels.shapes import or_one
from batchnorm.models.recalibration.correlation import correlation_times

# Of all values together, or the mean of the batches' own.
Variance = Literal["total", "within"]
FEWEST_BATCHES = 8
TAILS = 1.1  # times what the largest of Gaussian variances reaches in 2 % of cases
_SIGNS = 8
_VECTORS = ("count", "mean", "m2", "within", "within_count", "unbiased", "batches", "reference", "reference_var", "top")


@dataclass
class Totals:
    """Pooled moments of the channels of some layers, and how the batches' own moments spread.

    With n_k values in batch k of mean m_k and biased variance v_k, d_k = m_k - reference and
    q_k = v_k + d_k^2 (the mean squared deviation from the reference), the rows of sums are the
    sums over batches of n_k^2 times 1, d, d^2, q, q^2, q d, v, v^2. The standard errors of the
    pooled mean and variance about any centre follow from these. top is the largest variance of a batch. All
    are float64 `(channels,)`.

    owner says which layer a channel belongs to.
    """

    owner: Tensor
    count: Tensor
    mean: Tensor
    m2: Tensor
    within: Tensor
    within_count: Tensor
    unbiased: Tensor
    batches: Tensor
    reference: Tensor
    reference_var: Tensor
    top: Tensor
    sums: Tensor
    sketches: list[Tensor] = field(default_factory=list)

    @staticmethod
    def empty(owner: Tensor) -> Totals:
        """Nothing seen yet."""
        zeros: dict[str, Any] = {name: torch.zeros(len(owner), dtype=torch.float64) for name in _VECTORS}
        return Totals(owner, sums=torch.zeros(8, len(owner), dtype=torch.float64), **zeros)

    def add(self, n: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Batches, `(batches, channels)` each: counts, means and m2; a count of 0 where a layer was not reached."""
        here = n > 0
        zero = n.new_zeros(())
        mean, var = torch.where(here, mean, zero), torch.where(here, m2 / torch.where(here, n, 1.0), zero)
        first = here.int().argmax(0, keepdim=True)
        new = (self.batches == 0) & here.any(0)
        self.reference = torch.where(new, mean.gather(0, first)[0], self.reference)
        self.reference_var = torch.where(new, var.gather(0, first)[0], self.reference_var)
        d = torch.where(here, mean - self.reference, zero)
        q = var + d.square()
        squared = n.square()
        terms = (None, d, d * d, q, q * q, q * d, var, var * var)
        self.sums = self.sums + torch.stack([(squared if t is None else squared * t).sum(0) for t in terms])
        count = n.sum(0)
        centre = (n * mean).sum(0) / or_one(count)
        m2_here = (n * (var + (mean - centre).square())).sum(0)
        self._pool(count, centre, m2_here)
        some = n > 1
        self.within = self.within + (n * var).sum(0)
        self.unbiased = self.unbiased + torch.where(some, n * n * var / torch.where(some, n - 1, 1.0), zero).sum(0)
        self.within_count = self.within_count + torch.where(some, n, zero).sum(0)
        self.batches = self.batches + here.sum(0)
        self.top = torch.maximum(self.top, var.amax(0))
        self.sketches += self._sketch(here, d, var)

    def _pool(self, count: Tensor, mean: Tensor, m2: Tensor) -> None:
        """Chan's formula."""
        total = self.count + count
        share = count / torch.where(total > 0, total, 1.0)
        delta = torch.where(count > 0, mean - self.mean, 0.0)
        self.m2 = self.m2 + m2 + delta.square() * self.count * share
        self.mean = self.mean + delta * share
        self.count = total

    @staticmethod
    def of_batches(n: Tensor, mean: Tensor, m2: Tensor) -> Totals:
        """One layer's batches: counts `(batches,)`, means and m2 `(batches, channels)`."""
        totals = Totals.empty(torch.zeros(mean.shape[1], dtype=torch.long))
        totals.add(n[:, None].expand_as(mean), mean, m2)
        return totals

    def variance(self, kind: Variance, correction: int) -> Tensor:
        """The variance to store: "total" or "within", biased (correction 0) or unbiased (1)."""
        if kind == "within":
            top, rest = (self.unbiased, self.within_count) if correction else (self.within, self.count)
        else:
            top, rest = self.m2, self.count - correction
        return torch.where(rest > 0, top / torch.where(rest > 0, rest, 1.0), torch.nan)

    def standard_errors(self, kind: Variance) -> tuple[Tensor, Tensor]:
        """Of the mean and of the variance, from the spread between batches; infinite below 8 batches.

        Batches are the units, as in cluster sampling: whatever ties the values within a batch
        together is in the spread; correlation from batch to batch multiplies it (`correlation_times`).
        With weights w_k = n_k / n the pooled mean is a ratio estimate, and K / (K - 1) * sum w_k^2 (m_k
        - mean)^2 its variance; the pooled variance is the same with the mean squared deviations in
        place of the means.

        Source: Cochran, "Sampling Techniques" (3rd ed., 1977), section 9A.
        """
        one, d, dd, q, qq, qd, v, vv = self.sums
        n = torch.where(self.count > 0, self.count, 1.0).square()
        k = self.batches
        scale = torch.where(k >= FEWEST_BATCHES, k / (k - 1).clamp_min(1), torch.inf) / n
        shift = self.mean - self.reference
        mean = dd - 2 * shift * d + shift.square() * one
        within = self.within / torch.where(self.count > 0, self.count, 1.0)
        variances = vv - 2 * within * v + within.square() * one
        of_mean, of_var = correlation_times(self.sketches)[self.owner].T
        if kind == "within":
            spread, squares = variances, variances.new_zeros(())
        else:
            c = shift.square() - self.m2 / torch.where(self.count > 0, self.count, 1.0)
            spread = qq + 4 * shift.square() * dd + c.square() * one - 4 * shift * qd + 2 * c * q - 4 * shift * c * d
            # What the squared offsets add is correlated for half as long as the offsets: a correlation r of
            # neighbours is r^2 there.
            squares = (spread - variances).clamp_min(0) * ((1 + of_mean) / 2 - of_var).clamp_min(0)
        # A spread of 0 times infinity is still unknown.
        found = [mean.clamp_min(0) * scale * of_mean, (spread.clamp_min(0) * of_var + squares) * scale]
        return tuple(torch.nan_to_num(s, nan=torch.inf).sqrt() for s in found)  # pyright: ignore[reportReturnType]

    @property
    def heavy_tailed(self) -> bool:
        """Whether single batches make the spread of the batches' variances, so that its error bar is too small.

        By the mean over channels of the share of the batch with the largest variance in the sum of squares. Of
        Gaussian values it is 0.41 among 8 batches and 0.19 among 32, of Student's t(3) 0.5 and 0.45.
        """
        one, *_, v, vv = self.sums
        centre = self.within / torch.where(self.count > 0, self.count, 1.0)
        spread = vv - 2 * centre * v + centre.square() * one
        known = (spread > 1e-12 * vv) & (self.batches >= FEWEST_BATCHES)
        if not bool(known.any()):
            return False
        k = self.batches[known]
        share = (one / self.batches)[known] * (self.top - centre)[known].square() / spread[known]
        return bool((share / torch.clamp(1.36 / k.sqrt(), min=0.17)).mean() > TAILS)

    def _sketch(self, here: Tensor, d: Tensor, var: Tensor) -> list[Tensor]:
        """Per batch a few random combinations of its standardised means and variances, a row per layer."""
        known = here & (self.reference_var > 0)
        scale = torch.where(self.reference_var > 0, self.reference_var, 1.0)
        z = (torch.where(known, d / scale.sqrt(), 0.0), torch.where(known, var / scale - 1, 0.0))
        sizes = torch.bincount(self.owner).tolist()
        signs = _signs(len(self.owner)).split(sizes)
        blocks = [
            torch.cat([part @ s for part in pair], 1)
            for *pair, s in zip(*(k.split(sizes, 1) for k in z), signs, strict=True)
        ]
        return list(torch.stack(blocks, 1))

    def layer(self, where: slice) -> Totals:
        """The channels of one layer alone."""
        parts: dict[str, Any] = {name: getattr(self, name)[where] for name in _VECTORS}
        row = int(self.owner[where.start])
        sketches = [sketch[row : row + 1] for sketch in self.sketches]
        return Totals(torch.zeros_like(self.owner[where]), sums=self.sums[:, where], sketches=sketches, **parts)

    def merge(self, other: Totals) -> None:
        """Pool what another process has seen; the spread is carried over to this side's reference."""
        shift = torch.where(self.batches > 0, other.reference - self.reference, 0.0)
        reference = torch.where(self.batches > 0, self.reference, other.reference)
        reference_var = torch.where(self.batches > 0, self.reference_var, other.reference_var)
        one, d, dd, q, qq, qd, v, vv = other.sums
        # d becomes d + s, and q becomes q + 2 s d + s^2.
        s = shift
        moved = [
            one,
            d + s * one,
            dd + 2 * s * d + s.square() * one,
            q + 2 * s * d + s.square() * one,
            qq + 4 * s.square() * dd + s.pow(4) * one + 4 * s * qd + 2 * s.square() * q + 4 * s.pow(3) * d,
            qd + 2 * s * dd + s.square() * d + s * q + 2 * s.square() * d + s.pow(3) * one,
            v,
            vv,
        ]
        self._pool(other.count, other.mean, other.m2)
        self.sums = self.sums + torch.stack(moved)
        self.reference, self.reference_var = reference, reference_var
        self.top = torch.maximum(self.top, other.top)
        for name in ("within", "within_count", "unbiased", "batches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sketches = [*self.sketches, *other.sketches]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.__dict__, "sketches": list(self.sketches)}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Totals:
        """The inverse of `state`."""
        return Totals(**state)


def _signs(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 2, (channels, _SIGNS), generator=generator).double() * 2 - 1


def errors_in_std(totals: Totals, eps: Tensor, kind: Variance, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Per layer the root mean square over channels of both standard errors, in standard deviations of the layer.

    That of the variance is taken as that of the standard deviation, half of it relative. eps is
    per channel. Zero for layers that nothing reached. known are the standard errors, where the caller has them.
    """
    of_mean, of_var = totals.standard_errors(kind) if known is None else known
    var = torch.nan_to_num(totals.variance(kind, 0)) + eps
    squared = of_mean.square() / var + (of_var / (2 * var)).square()
    squared = torch.where(totals.count > 0, squared, 0.0)
    layers = int(totals.owner[-1]) + 1
    sums = torch.zeros(layers, dtype=torch.float64).index_add_(0, totals.owner, squared)
    return (sums / torch.bincount(totals.owner, minlength=layers)).sqrt()
