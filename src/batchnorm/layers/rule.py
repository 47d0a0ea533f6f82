"""The arithmetic of batch normalization, once, on channel vectors `(groups, C)` in float64.

A coupling is a plan, an estimator a move, a backward a pull, each with numbers in the place of types; choices return
the numbers. A weight of 0 leaves out what it weighs, be it NaN or infinite. Everything here is differentiable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.kernels.calls import Pull
from batchnorm.kernels.recurrence import before, recurrence
from batchnorm.kernels.shapes import or_one
from batchnorm.layers.moments import Moments


class Numbers(NamedTuple):
    """What normalises: `mean * batch.mean + (1 - mean) * pm`, and `rest + share * E` for the variance.

    Each is a number, or a tensor that broadcasts over `(groups, C)`: of a schedule, one per group, or one that is
    learned. `E = m2 / n + spread * (batch.mean - pm)^2`: spread is 0 for the batch's own variance, `1 - share` for
    moments that mix as E[x] and E[x^2], 1 about pm. With log it is `exp(rest + share * log E)`.
    low and high limit the ratio `sqrt((var + eps) / (pv + eps))`, which scales the output, or with quiet the gradient
    alone; shift limits the offset `(batch.mean - pm) / sqrt(pv + eps)`. Ratio and offset are constants to the gradient.
    """

    mean: Any = 1.0
    share: Any = 1.0
    spread: Any = 0.0
    log: bool = False
    low: Any = 1.0
    high: Any = 1.0
    quiet: bool = False
    shift: Any = 0.0


class Vectors(NamedTuple):
    """The population's mean and variance, and what joins the batch's share of the variance; None is 0."""

    pm: Tensor | None = None
    pv: Tensor | None = None
    rest: Tensor | None = None


class Move(NamedTuple):
    """The next running statistics; the default moves nothing, which is what a pause is.

    `(1 - gain) * mean + gain * batch.mean`, and `q * var + p * batch.var(correction) + r * (batch.mean - mean)^2`;
    with root, q and p weigh standard deviations. from_mean and from_var stand for the running statistics where the
    batch joins something else, as the other batches of a window.
    """

    gain: Any = 0.0
    q: Any = 1.0
    p: Any = 0.0
    r: Any = 0.0
    root: bool = False
    correction: int = 1
    from_mean: Tensor | None = None
    from_var: Tensor | None = None


UNCENTRED = Numbers(mean=0.0, spread=1.0)  # no mean is taken off, and E is E[x^2], about pm = 0
STORED = Numbers(mean=0.0, share=0.0, spread=1.0)  # the population alone, whatever the batch is


NOTHING = Vectors()


class Rows(NamedTuple):
    """What normalises a group and channel, `(x - mean) * invstd * ratio + offset`, and what its backward asks.

    follow scales the gradient as ratio does, and not the output; own_u and own_v are the batch's weights in mean and
    variance; few marks the groups that met the running statistics. None is 1, or 0 for the offset.
    """

    n: Tensor
    mean: Tensor
    invstd: Tensor
    centre: Tensor
    own_u: Any
    own_v: Any
    ratio: Tensor | None = None
    follow: Tensor | None = None
    offset: Tensor | None = None
    few: Tensor | None = None
    var: Any = None


def is_number(value: Any, number: float) -> bool:
    """Whether it is this very number, not a tensor that may hold it."""
    return not isinstance(value, Tensor) and value == number


def times(weight: Any, x: Tensor) -> Tensor:
    """The product, where a weight of 0 leaves x out, be it NaN or infinite."""
    if isinstance(weight, Tensor):
        return (weight * x).masked_fill(weight == 0, 0.0)
    if weight == 1:
        return x
    return weight * x if weight != 0 else torch.zeros_like(x)


def pick(condition: Any, a: Any, b: Any) -> Any:
    """A where the condition holds, else b: of tensors, or of numbers."""
    if not isinstance(condition, Tensor):
        return a if condition else b
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.where(condition, a, b)
    wide = torch.float32 if condition.device.type == "mps" else torch.float64
    return torch.where(condition, torch.full((), a, dtype=wide, device=condition.device), b)


def single(value: Any, like: Tensor) -> Tensor:
    """A number, or a tensor, beside another: filled in there, since a copy from the host is waited for."""
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _limit(x: Tensor, low: Any, high: Any) -> Tensor:
    """Clamped, a constant to the gradient; limits that meet leave x out."""
    low, high = single(low, x), single(high, x)
    return torch.where(low == high, low, torch.minimum(torch.maximum(x.detach(), low), high))


def plan(batch: Moments, numbers: Numbers, vectors: Vectors, eps: float) -> Rows:
    """What normalises each group."""
    n, (pm, pv, rest) = or_one(batch.count), vectors
    far = batch.mean if pm is None else batch.mean - pm
    own = spread_about(batch, n, numbers, far)
    mean = times(numbers.mean, batch.mean)
    if pm is not None:
        mean = mean + times(1 - numbers.mean, pm)
    var = times(numbers.share, own.log() if numbers.log else own)
    var = var if rest is None else var + rest
    own_v = numbers.share
    if numbers.log:
        var = var.exp()
        own_v = torch.where(own > 0, numbers.share * var / own, 0.0)
    centre = times(1 - numbers.spread, batch.mean)
    if pm is not None:
        centre = centre + times(numbers.spread, pm)
    ratio = offset = None
    if not (is_number(numbers.low, 1) and is_number(numbers.high, 1)) and pv is not None:
        ratio = _limit(((var + eps) / (pv + eps)).sqrt(), numbers.low, numbers.high)
    if not is_number(numbers.shift, 0) and pv is not None:
        offset = _limit(far / (pv + eps).sqrt(), -numbers.shift, numbers.shift)
    shown, follow = (None, ratio) if numbers.quiet else (ratio, None)
    return Rows(n, mean, torch.rsqrt(var + eps), centre, numbers.mean, own_v, shown, follow, offset, var=var)


def spread_about(batch: Moments, n: Tensor, numbers: Numbers, far: Tensor) -> Tensor:
    """The batch's part of the variance, E."""
    own = batch.m2 / n
    return own if is_number(numbers.spread, 0) else own + times(numbers.spread, far.square())


def instead(rows: Rows, where: Tensor, mean: Any, var: Any, eps: float) -> Rows:
    """Rows where some groups are normalised with other statistics, constants to the gradient: without the batch."""

    def other(value: Any, own: Any) -> Any:
        return None if own is None else torch.where(where, value, own)

    var = torch.where(where, var, rows.var)
    return rows._replace(
        mean=torch.where(where, mean, rows.mean),
        var=var,
        invstd=torch.rsqrt(var + eps),
        centre=torch.where(where, mean, rows.centre),
        own_u=other(0.0, single(rows.own_u, var)),
        own_v=other(0.0, single(rows.own_v, var)),
        ratio=other(1.0, rows.ratio),
        follow=other(1.0, rows.follow),
        offset=other(0.0, rows.offset),
    )


def affine(rows: Rows, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and shift of the output about the mean."""
    scale = rows.invstd if rows.ratio is None else rows.invstd * rows.ratio
    shift = torch.zeros_like(rows.invstd) if rows.offset is None else rows.offset
    if weight is not None:
        scale, shift = scale * weight.to(scale.dtype), shift * weight.to(scale.dtype)
    return scale, shift if bias is None else shift + bias.to(scale.dtype)


def factor(rows: Rows, weight: Tensor | None) -> Any:
    """What the gradient at the normalised data is of that at the output."""
    made: Any = 1.0 if weight is None else weight
    for ratio in (rows.ratio, rows.follow):
        made = made if ratio is None else ratio * made
    return made


def pull(
    rows: Rows, weight: Tensor | None, sum_g: Tensor, sum_gx: Tensor, given: Pull | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, u and v of `dx = scale * g - w * (u + v * (x - centre))`."""
    scale = rows.invstd * factor(rows, weight)
    own_u, own_v, base_u, base_v = (rows.own_u, rows.own_v, None, None) if given is None else given[:4]
    u, v = (_own(own, rows.n, scale, value) for own, value in ((own_u, sum_g), (own_v, sum_gx)))
    v = v * rows.invstd
    if base_u is not None:
        u = u + base_u
    if base_v is not None:
        v = v + base_v * rows.invstd.square()
    if rows.few is not None:
        u, v = (torch.where(rows.few, 0.0, value) for value in (u, v))
    return scale, u, v


def _own(own: Any, n: Tensor, scale: Tensor, value: Tensor) -> Tensor:
    if is_number(own, 0):
        return torch.zeros_like(value)
    found = own / n * scale * value
    return torch.where(own == 0, 0.0, found) if isinstance(own, Tensor) else found


def parameters(rows: Rows, sum_g: Tensor, sum_gx: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias, of the groups together."""
    dw = sum_gx if rows.ratio is None else sum_gx * rows.ratio
    dw = dw if rows.offset is None else dw + sum_g * rows.offset
    return dw.sum(0), sum_g.sum(0)


def move(batch: Moments, mean: Tensor, var: Tensor, eps: float, how: Move) -> tuple[Tensor, Tensor]:
    """The running mean and variance after this batch."""
    mean = mean if how.from_mean is None else how.from_mean
    var = var if how.from_var is None else how.from_var
    own = batch.var(how.correction)
    new = times(1 - how.gain, mean) + times(how.gain, batch.mean)
    if how.root:
        sigma = times(how.q, (var + eps).sqrt()) + times(how.p, (own + eps).sqrt())
        joined = (sigma.square() - eps).clamp_min(0)
    else:
        joined = times(how.q, var) + times(how.p, own)
    if not (how.root or is_number(how.r, 0)):
        joined = joined + times(how.r, (batch.mean - mean).square())
    # Numbers may come as rows of one group.
    return new.reshape(batch.mean.shape), joined.reshape(batch.mean.shape)


def stream(
    batch: Moments, mean: Tensor, var: Tensor, eps: float, how: Move, ok: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Move after move, group by group: what each group meets `(groups, C)`, and what is left at the end.

    The numbers are such that nothing but the running statistics is met; groups that are not ok change nothing.
    """

    def followed(values: Tensor, keep: Any, start: Tensor) -> tuple[Tensor, Tensor]:
        keep = single(keep, start).expand(len(values), 1)
        states = recurrence(torch.where(ok, values, 0.0), torch.where(ok, keep, 1.0), start)
        return before(states, start), states[-1]

    means, last_mean = followed(times(how.gain, batch.mean), 1 - how.gain, mean)
    own = batch.var(how.correction)
    if how.root:
        met, last = followed(times(how.p, (own + eps).sqrt()), how.q, (var + eps).sqrt())
        met, last = ((sigma.square() - eps).clamp_min(0) for sigma in (met, last))
    else:
        values = times(how.p, own)
        if not is_number(how.r, 0):
            values = values + times(how.r, (batch.mean - means).square())
        met, last = followed(values, how.q, var)
    return (means, met), (last_mean, last)


def may_enter(
    batch: Moments, var: Tensor, nonfinite: str, several: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Whether a batch, or each group `(groups, 1)` of a stream, enters the statistics, or is skipped; what must hold.

    It enters where it is not empty, and finite unless the policy is to propagate; without several values it has met
    the running statistics, which stay. Neither of these is skipped: only what is not finite is.
    """
    rows = batch.mean.dim() == 2

    def everywhere(condition: Tensor) -> Tensor:
        return condition.all(-1, keepdim=True) if rows else condition.all()

    present = everywhere(batch.count > 0 if several is None else (batch.count > 0) & several)
    if nonfinite == "propagate":
        return present, torch.zeros_like(present), None
    finite = everywhere(torch.isfinite(batch.mean) & torch.isfinite(batch.m2) & torch.isfinite(var))
    skipped = present & ~finite
    return present & finite, skipped, ~skipped.any() if nonfinite == "raise" else None


class Sums(NamedTuple):
    """What a backward brings to the channels, for a pull or its memory: sums of g and of g * xhat per group.

    The means are of g at the normalised data.
    """

    rows: Rows
    batch: Moments
    weight: Tensor | None
    # Both sums; where the backward has made them, the four means follow, and it is known whether the sums are finite.
    table: Tensor
    # Which groups hold values, and have not met the running statistics: a tensor, or True.
    some: Any
    finite: bool | None = None

    @property
    def invstd(self) -> Tensor:
        """Of each group."""
        return self.rows.invstd

    @property
    def sum_g(self) -> Tensor:
        """The sum of g at the output."""
        return self.table[0]

    @property
    def sum_gx(self) -> Tensor:
        """The sum of g * xhat, likewise."""
        return self.table[1]

    @property
    def mean_g(self) -> Tensor:
        """The mean of g."""
        return self._mean(0)

    @property
    def mean_gx(self) -> Tensor:
        """The mean of g * xhat."""
        return self._mean(1)

    def _mean(self, index: int) -> Tensor:
        if self.finite is not None:
            return self.table[2 + index]
        return self.table[index] * factor(self.rows, self.weight) / self.rows.n

    @property
    def y1(self) -> Tensor:
        """The mean of xhat."""
        return (self.batch.mean - self.rows.mean) * self.invstd if self.finite is None else self.table[4]

    @property
    def y2(self) -> Tensor:
        """The mean of its square."""
        if self.finite is not None:
            return self.table[5]
        off = self.batch.mean - self.rows.mean
        return torch.addcmul(self.batch.m2 / self.rows.n, off, off) * self.invstd.square()

    @property
    def values(self) -> Tensor:
        """How many values each group has that count: none where it is empty or met the running statistics."""
        few = self.rows.few
        return self.batch.count if few is None else self.batch.count.masked_fill(few, 0.0)

    def pooled(self, means: Tensor) -> Tensor:
        """The mean over groups, weighted by what they hold."""
        if self.table.shape[1] == 1:
            return pick(self.some, means, 0.0)[0]
        return pick(self.some, means * self.values, 0.0).sum(0) / or_one(self.values.sum(0))


def told(rows: Rows, batch: Moments, weight: Tensor | None, table: Tensor) -> Sums:
    """All that a memory asks of the data, by the two sums `(2, groups, C)`."""
    found = Sums(rows, batch, weight, table, True)
    return found._replace(some=found.values > 0)


def constants(rows: Rows) -> Rows:
    """Rows whose statistics are constants to the gradient."""
    mean, invstd, centre, var = (t.detach() for t in (rows.mean, rows.invstd, rows.centre, rows.var))
    return rows._replace(mean=mean, invstd=invstd, centre=centre, var=var, own_u=0.0, own_v=0.0)
