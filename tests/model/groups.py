"""The moments of groups of samples in plain torch: weighted, differentiable, without anything of the package."""

from typing import NamedTuple

import torch

# Couplings that take off no mean.
UNCENTRED = ("second moment", "mabn", "power", "unified")


class Moments(NamedTuple):
    """Of one group, each `(C,)`: mean and biased variance; n and n2 are the sums of weights and of their squares."""

    n: float
    n2: float
    mean: torch.Tensor
    var: torch.Tensor

    @property
    def few(self):
        """Whether there is one value, or weights that carry as little information as one."""
        return self.n > 0 and self.n**2 <= self.n2 * (1 + 1e-6)

    def corrected(self, correction, reliability):
        """The variance that is stored; NaN where nothing is left to divide by."""
        unit = self.n2 / self.n if reliability else 1.0
        left = self.n - correction * unit
        return (
            self.var * (self.n / left)
            if left > 0 and not (reliability and correction and self.few)
            else torch.full_like(self.var, torch.nan)
        )


def axes(x):
    return (0, *range(2, x.dim()))


def over(vector, x):
    """A channel vector that broadcasts over x."""
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))


def bounds(samples, size):
    """First and last sample of every group: `samples // size` groups as even as can be, larger ones first."""
    groups = 1 if size is None else max(1, samples // size)
    small, extra = divmod(samples, groups)
    ends = [small * (i + 1) + min(i + 1, extra) for i in range(groups)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def moments(x, w, centred):
    """Of the values whose weight is not 0; about zero where no mean is taken off."""
    if w is None:
        n = n2 = float(x.numel() // x.shape[1])
        mean = x.mean(axes(x))
        var = ((x - over(mean, x)) ** 2 if centred else x**2).mean(axes(x))
    else:
        wide = w.double()
        n, n2 = float(wide.sum()), float((wide**2).sum())
        w, chosen = w.to(x.dtype), w != 0
        x = torch.where(chosen, x, 0)
        mean = (w * x).sum(axes(x)) / n
        away = torch.where(chosen, x - over(mean, x), 0) if centred else x
        var = (w * away**2).sum(axes(x)) / n
    return Moments(n, n2, mean if centred else torch.zeros_like(mean), var)


def pooled(parts):
    """All groups together; those without values are left out."""
    parts = [part for part in parts if part.n > 0]
    n, n2 = sum(part.n for part in parts), sum(part.n2 for part in parts)
    mean = sum(part.mean * part.n for part in parts) / n
    var = sum((part.var + (part.mean - mean) ** 2) * part.n for part in parts) / n
    return Moments(n, n2, mean, var)


def times(weight, x):
    """weight * x, where a weight of 0 leaves x out, be it NaN or infinite."""
    return torch.zeros_like(x) if weight == 0 else weight * x
