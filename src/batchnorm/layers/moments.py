"""Count, mean and sum of squared deviations: what statistics are made of, and how they merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from batchnorm import kernels
from batchnorm.arguments import NOT_NEGATIVE, a_tensor, an_axis, arguments, told, whole
from batchnorm.errors import ArgumentError, BatchNormError, OperandError, check
from batchnorm.kernels.shapes import or_one
from batchnorm.layers.masks import against, require_kind, require_weights

# Relative: sums of weights are known to no more digits, since kernels add the weights of float32 data in float32.
SAME_WEIGHT = 1e-6


@dataclass(frozen=True)
class Moments:
    """The exact moments of some values per channel, mergeable without loss.

    Example:
        >>> import torch
        >>> from batchnorm.layers import Moments
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64)
        >>> whole = Moments.of(x)
        >>> parts = Moments.of(x[:1]).merge(Moments.of(x[1:]))
        >>> float(whole.mean), float(parts.m2)
        (3.0, 14.0)

    Attributes are float64 tensors of one shape, `(C,)` or `(groups, C)`: count is the number of
    values (the sum of weights for weighted data), mean their mean, m2 the sum of squared
    deviations from it, count_squared the sum of squared weights (None means equal to count).
    reliability says that weights are precisions, not repetitions, which matters to `var(1)` alone.

    Source: merging after Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979).
    """

    count: Tensor
    mean: Tensor
    m2: Tensor
    count_squared: Tensor | None = None
    reliability: bool = False

    @staticmethod
    @arguments(x=a_tensor, channel_axis=an_axis, mask=a_tensor, weight=a_tensor, groups=whole(1))
    def of(
        x: Tensor,
        *,
        channel_axis: int = 1,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        groups: int | None = None,
    ) -> Moments:
        """The moments of x over all axes but channel_axis.

        Args:
            x: floating-point tensor with at least two axes, such as `(N, C)` or `(N, C, H, W)`.
            channel_axis: which axis holds the channels.
            mask: boolean, True is data; it broadcasts against x with the channel axis taken out,
                so `(N,)` or `(N, L)` for `(N, C, L)`.
            weight: non-negative sample weights, broadcast as mask is; not together with mask.
            groups: split the first of the remaining axes into this many even groups and return
                `(groups, C)`; sizes differ by at most one.

        Raises:
            BatchNormError: x is not floating point or has fewer than two axes, the mask or weight
                does not fit, or there are more groups than samples.
        """
        check(x.is_floating_point(), "x", "a floating-point tensor", x.dtype)
        check(x.dim() >= 2, "x", "a tensor with at least two axes", f"of shape {tuple(x.shape)}")
        check(-x.dim() <= channel_axis < x.dim(), "channel_axis", f"an axis of {tuple(x.shape)}", channel_axis)
        if mask is not None and weight is not None:
            raise BatchNormError("give mask or weight, not both")
        channels_second = x.movedim(channel_axis, 1)
        k = 1 if groups is None else groups
        check(1 <= k <= max(channels_second.shape[0], 1), "groups", "between 1 and the number of samples", k)
        given, spread = mask if mask is not None else weight, None
        if given is not None:
            require_kind("weight" if mask is None else "mask", given)
            spread = against(channels_second, given)
            if mask is None:
                require_weights(spread)
        raw = kernels.select(channels_second).reduce(channels_second, spread, k)
        found = Moments(raw.count, raw.mean, raw.m2, raw.count_squared)
        return found if groups is not None else found.row(0)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together (Chan's formula), exact in float64."""
        if not isinstance(other, Moments):
            raise ArgumentError(f"other must be a Moments; it was {told(other)}")
        if self.mean.shape[-1] != other.mean.shape[-1]:
            raise OperandError(f"other must be of {self.mean.shape[-1]} channels; it was of {other.mean.shape[-1]}")
        count = self.count + other.count
        share = torch.where(count > 0, other.count / or_one(count), 0.0)
        # An empty side may carry any mean; it must not reach the result, not even as NaN * 0.
        mean_a = torch.where(self.count > 0, self.mean, other.mean)
        mean_b = torch.where(other.count > 0, other.mean, mean_a)
        delta = mean_b - mean_a
        # The mean with an infinity is infinite, and of both signs NaN.
        mean = mean_a + torch.where(delta.isfinite(), delta * share, mean_b)
        m2 = self.m2 + other.m2 + delta * delta * self.count * share
        return Moments(count, mean, m2, self._squares() + other._squares(), self.reliability)

    def pool(self) -> Moments:
        """Merge the groups of a `(groups, C)` result into one `(C,)` result."""
        if self.mean.dim() == 1:
            return self
        if len(self.mean) == 1:
            return self.row(0)
        count = self.count.sum(0)
        mean = (self.count * self.mean).sum(0) / or_one(count)
        m2 = (self.m2 + self.count * (self.mean - mean).square()).sum(0)
        return Moments(count, mean, m2, self._squares().sum(0), self.reliability)

    def row(self, index: int) -> Moments:
        """One group of a `(groups, C)` result."""
        squares = None if self.count_squared is None else self.count_squared[index]
        return Moments(self.count[index], self.mean[index], self.m2[index], squares, self.reliability)

    def var(self, correction: float = 0) -> Tensor:
        """The variance `m2 / (count - correction)`: 0 is the biased one that normalises, 1 the stored one.

        That is Bessel's correction where weights are frequencies (a sample of weight 2 stands for
        two); for reliabilities the correction is taken in units of count_squared / count. NaN where
        count <= correction.
        """
        if type(correction) not in (int, float) or not 0 <= correction < torch.inf:
            NOT_NEGATIVE("correction", correction)
        unit = self._squares() / or_one(self.count) if self.reliability else 1.0
        rest = self.count - correction * unit
        enough = rest > (SAME_WEIGHT * self.count if self.reliability else 0)
        return torch.where(enough, self.m2 / torch.where(enough, rest, 1.0), torch.nan)

    @property
    def few(self) -> Tensor:
        """Where there is one value, or weights that tell no more than one does."""
        return (self.count > 0) & (self.effective_count <= 1 + SAME_WEIGHT)

    def has_several(self) -> Tensor:
        """Whether any group has more than one value, in every channel."""
        several = (self.count > 0) & ~self.few
        return (several.any(0) if several.dim() == 2 else several).all()

    @property
    def effective_count(self) -> Tensor:
        """The number of equally weighted values that carry as much information (Kish)."""
        squares = self._squares()
        return torch.where(squares > 0, self.count.square() / or_one(squares), 0.0)

    def _squares(self) -> Tensor:
        return self.count if self.count_squared is None else self.count_squared


class SavedMoments(Moments):
    """Moments that a native call left, each viewed when it is first asked for."""

    def __init__(self, saved: Any, flat: bool, squares: int | None, reliability: bool) -> None:
        view = saved.flat if flat else saved.row
        self.__dict__.update(
            _view=view, reliability=reliability, count_squared=None if squares is None else view(squares)
        )

    def __getattr__(self, name: str) -> Any:
        if name not in _ROWS:
            raise AttributeError(name)
        found = self.__dict__[name] = self._view(_ROWS[name])
        return found


# Where a native call leaves them.
_ROWS = {"count": 0, "mean": 2, "m2": 3}


class Later:
    """What a function returns, made when something of it is asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Any) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)
