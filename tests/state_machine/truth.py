"""What must be true of a layer after any sequence of calls: batch normalization in NumPy, float64, value by value.

Written from the formulas of the methods, not from the package. Data are `(N, C, P)`: samples, channels, positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any


@dataclass
class Stats:
    """One set of running statistics: the layer's own, or a bank's."""

    mean: Array
    var: Array
    steps: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    weight: Array | None = None
    bias: Array | None = None


@dataclass
class Batch:
    """The moments of the values that count in a batch."""

    count: float
    mean: Array
    var: Array

    @property
    def unbiased(self) -> Array:
        """Bessel's variance."""
        return self.var * self.count / (self.count - 1)

    @property
    def square(self) -> Array:
        """The second moment; of infinite values it is infinite, though their variance is not a number."""
        return np.where(np.isinf(self.mean), np.inf, self.var + self.mean**2)

    def joined(self, other: Batch) -> Batch:
        """The moments of both batches together."""
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        square = (self.count * self.square + other.count * other.square) / count
        return Batch(count, mean, square - mean**2)


@dataclass
class Forward:
    """What a forward leaves for its backward."""

    x: Array
    selected: Array
    y: Array
    stats: Stats
    owner: Stats
    weight: Array
    backward: Callable[[Array], Array]
    scaled: Array


def moments(x: Array, selected: Array) -> Batch:
    """Count, mean and biased variance per channel of the selected `(N, P)` values."""
    values = x.transpose(0, 2, 1)[selected]
    return Batch(len(values), values.mean(0), values.var(0))


def finite(*arrays: Array) -> bool:
    """Whether every value is."""
    return all(np.isfinite(array).all() for array in arrays)


def _over(vector: Array) -> Array:
    return vector[None, :, None]


def times(weight: float, array: Array) -> Array:
    """A weight of 0 leaves what it weighs out, be it NaN or infinite."""
    return weight * array if weight else np.zeros_like(array)


# Estimators: the new mean and variance --------------------------------------------------------------------------


def gain(truth: Truth, stats: Stats) -> float:
    """The weight of the next batch."""
    step, momentum = stats.steps + 1, truth.momentum
    if truth.method == "diminishing":
        return 1 / step
    if momentum is None:
        return 1 / step
    if truth.method == "debiased":
        return momentum / (1 - (1 - momentum) ** step) if momentum > 0 else 0.0
    return momentum


def average(truth: Truth, stats: Stats, batch: Batch) -> None:
    """Torch's rule: means and unbiased variances, each weighed by the gain."""
    a = gain(truth, stats)
    stats.mean = (1 - a) * stats.mean + a * batch.mean
    stats.var = (1 - a) * stats.var + a * batch.unbiased


def average_sigma(truth: Truth, stats: Stats, batch: Batch) -> None:
    """Batch Renormalization's rule: standard deviations of biased variances."""
    a = gain(truth, stats)
    sigma = (1 - a) * np.sqrt(stats.var + truth.eps) + a * np.sqrt(batch.var + truth.eps)
    stats.mean = (1 - a) * stats.mean + a * batch.mean
    stats.var = np.maximum(sigma**2 - truth.eps, 0)


def average_square(truth: Truth, stats: Stats, batch: Batch) -> None:
    """Methods that take off no mean: the second moment."""
    a = gain(truth, stats)
    stats.var = (1 - a) * stats.var + a * batch.square


def pool(truth: Truth, stats: Stats, batch: Batch) -> None:
    """The moments of everything seen."""
    if truth.momentum == 0:
        return
    seen = stats.memory["count"]
    if seen > 1:
        batch = Batch(seen, stats.mean, stats.var * (seen - 1) / seen).joined(batch)
    stats.memory["count"] = batch.count
    stats.mean, stats.var = batch.mean, batch.unbiased


def window(truth: Truth, stats: Stats, batch: Batch) -> None:
    """The mean over the last batches."""
    if truth.momentum == 0:
        return
    kept = [*stats.memory["batches"], (batch.mean, batch.unbiased)][-WINDOW:]
    stats.memory["batches"] = kept
    stats.mean, stats.var = (np.mean([one[i] for one in kept], 0) for i in (0, 1))


# Couplings: what normalises in training, and the gradient ---------------------------------------------------------


def by_batch(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """The batch, with full gradient."""
    return _linear(x, selected, batch, batch.mean, batch.var, truth.eps, 1.0)


def by_groups(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """Each ghost group by itself."""
    parts = np.array_split(np.arange(len(x)), max(1, len(x) // GHOST))
    done = [_linear(x[p], selected[p], m := moments(x[p], selected[p]), m.mean, m.var, truth.eps, 1.0) for p in parts]

    def back(g: Array) -> Array:
        return np.concatenate([one[1](g[p]) for one, p in zip(done, parts, strict=True)])

    return np.concatenate([one[0] for one in done]), back


def by_renorm(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """The batch, corrected towards the running statistics by constants within limits."""
    sigma = np.sqrt(stats.var + truth.eps)
    r = np.clip(np.sqrt(batch.var + truth.eps) / sigma, 1 / 3, 3)
    d = np.clip((batch.mean - stats.mean) / sigma, -5, 5)
    z, back = _linear(x, selected, batch, batch.mean, batch.var, truth.eps, 1.0)
    return z * _over(r) + _over(d), lambda g: back(g * _over(r))


def by_population(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """The average with this batch in it; the gradient flows through the batch's share."""
    a = gain(truth, stats)
    mean = times(1 - a, stats.mean) + times(a, batch.mean)
    var = times(1 - a, stats.var) + times(a, batch.var)
    return _linear(x, selected, batch, mean, var, truth.eps, 0.0 if truth.method == "diminishing" else a)


def _linear(
    x: Array, selected: Array, batch: Batch, mean: Array, var: Array, eps: float, a: float
) -> tuple[Array, Any]:
    """`(x - mean) / S` and dx = (g - a mean(g) - a c mean(g z)) / S, c = (x - batch mean) / S."""
    root = _over(np.sqrt(var + eps))
    z, c = (x - _over(mean)) / root, (x - _over(batch.mean)) / root
    kept = selected[:, None]

    def back(g: Array) -> Array:
        mean_g = (g * kept).sum((0, 2), keepdims=True) / batch.count
        mean_gz = np.where(kept, g * z, 0).sum((0, 2), keepdims=True) / batch.count
        return (g - times(a, mean_g) - times(a, c * mean_gz)) / root

    return z, back


def by_power(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """The running second moment from before this batch; a controller takes y's share off the gradient."""
    warm = stats.steps + 1 <= 1
    root = np.sqrt((batch.square if warm else stats.var) + truth.eps)
    z = x / _over(root)
    moves = truth.moves

    def back(g: Array) -> Array:
        psi = np.where(selected[:, None], g * z, 0).sum((0, 2)) / batch.count
        held = 0.1 * stats.memory["v"]
        if moves and finite(psi, g):
            stats.memory["v"] = stats.memory["v"] + psi - held * batch.square / root**2
        return (g - z * _over(psi if warm else held)) / _over(root)

    return z, back


def by_windows(truth: Truth, stats: Stats, x: Array, selected: Array, batch: Batch) -> tuple[Array, Any]:
    """MABN: the mean second moment of the last batches, corrected towards the running one; likewise backwards."""
    step, moves = stats.steps + 1, truth.moves
    var = _over_window(stats.memory["forward"], batch.square, step)
    root = np.sqrt(var + truth.eps)
    z = x / _over(root)
    r = np.clip(root / np.sqrt(stats.var + truth.eps), 1 / 5, 5) if step > 2 else np.ones_like(root)
    if moves and finite(batch.square):
        stats.memory["forward"] = [*stats.memory["forward"], batch.square][1 - WINDOW_MABN :]

    def back(g: Array) -> Array:
        g = g * _over(r)
        psi = np.where(selected[:, None], g * z, 0).sum((0, 2)) / batch.count
        used = _over_window(stats.memory["backward"], psi, step)
        if moves and finite(psi, g):
            stats.memory["backward"] = [*stats.memory["backward"], psi][1 - WINDOW_MABN :]
        return (g - z * _over(used)) / _over(root)

    return z * _over(r), back


def _over_window(kept: list[Array], value: Array, step: int) -> Array:
    full = len(kept) == WINDOW_MABN - 1 and step > 1
    return np.mean([*kept, value], 0) if full else value


GHOST, WINDOW, WINDOW_MABN = 2, 2, 3
# Per method: momentum, how statistics move, what normalises.
METHODS: dict[str, tuple[float | None, Any, Any]] = {
    "batchnorm": (0.1, average, by_batch),
    "debiased": (0.1, average, by_batch),
    "cumulative": (None, average, by_batch),
    "pooled": (0.1, pool, by_batch),
    "window": (0.1, window, by_batch),
    "ghost": (0.1, average, by_groups),
    "renorm": (0.01, average_sigma, by_renorm),
    "population": (0.1, average, by_population),
    "diminishing": (0.1, average, by_population),
    "power": (0.1, average_square, by_power),
    "mabn": (0.02, average_square, by_windows),
}
UNCENTRED = ("power", "mabn")


class Truth:
    """A layer as it must be: its statistics and banks, its switches, and what its contexts hold."""

    def __init__(self, method: str, channels: int, eps: float = 1e-5) -> None:
        self.method, self.eps, self.channels = method, eps, channels
        self.momentum, self.move, self.couple = METHODS[method]
        self.own = self.fresh()
        self.own.weight, self.own.bias = np.ones(channels), np.zeros(channels)
        self.banks: dict[str, Stats] = {}
        self.training, self.frozen, self.skipped = True, False, 0
        self.leave_contexts()

    def fresh(self) -> Stats:
        """Statistics as they start."""
        stats = Stats(np.zeros(self.channels), np.ones(self.channels))
        stats.memory = {
            "pooled": {"count": 0},
            "window": {"batches": []},
            "power": {"v": np.zeros(self.channels)},
            "mabn": {"forward": [], "backward": []},
        }.get(self.method, {})
        return stats

    def leave_contexts(self) -> None:
        """As after the last `with` block, nothing landed."""
        self.paused, self.bank, self.mask = 0, None, None
        self.pending: Batch | None = None
        self.accumulating = self.renorm = False

    @property
    def active(self) -> Stats:
        """The statistics that a forward reads and moves."""
        return self.own if self.bank is None else self.banks[self.bank]

    @property
    def moves(self) -> bool:
        """Whether a training forward moves statistics."""
        return not self.paused

    @property
    def affine(self) -> tuple[Stats, Array, Array]:
        """Whose weight and bias, and the two."""
        owner = self.active if self.active.weight is not None else self.own
        return owner, owner.weight, owner.bias

    def copy(self) -> Truth:
        """A copy starts outside every context."""
        twin = copy.deepcopy(self)
        twin.leave_contexts()
        return twin

    def make_bank(self, name: str, own_affine: bool) -> None:
        """At its first use a bank starts as the layer's own statistics."""
        if name not in self.banks:
            self.banks[name] = copy.deepcopy(self.own)
            if not own_affine:
                self.banks[name].weight = self.banks[name].bias = None

    def reset(self) -> None:
        """`reset_running_stats`: the active statistics, and what the layer counts."""
        fresh, stats = self.fresh(), self.active
        stats.mean, stats.var, stats.steps, stats.memory = fresh.mean, fresh.var, 0, fresh.memory
        self.skipped, self.pending = 0, None

    def forward(self, x: Array) -> Forward:
        """The output, and what its backward needs; statistics move."""
        stats, (owner, weight, bias) = self.active, self.affine
        whole = np.ones((x.shape[0], x.shape[2]), bool)
        selected = whole if self.mask is None else np.broadcast_to(self.mask[:, None], whole.shape)
        if self.frozen or not self.training:
            z, back = self._stored(stats, x)
        else:
            with np.errstate(all="ignore"):
                batch = moments(x, selected)
                couple = by_renorm if self.renorm else self.couple
                z, back = couple(self, stats, x, selected, batch)
                self._count(stats, batch)
        with np.errstate(all="ignore"):
            y = np.where(selected[:, None], z * _over(weight) + _over(bias), 0)
        return Forward(x, selected, y, stats, owner, weight, back, z)

    def _stored(self, stats: Stats, x: Array) -> tuple[Array, Any]:
        root = _over(np.sqrt(stats.var + self.eps))
        return (x - (0 if self.method in UNCENTRED else _over(stats.mean))) / root, lambda g: g / root

    def _count(self, stats: Stats, batch: Batch) -> None:
        if self.paused:
            return
        if not finite(batch.mean, batch.var):
            self.skipped += 1
        elif self.accumulating:
            self.pending = batch if self.pending is None else self.pending.joined(batch)
        else:
            self.move(self, stats, batch)
            stats.steps += 1

    def land(self, well: bool) -> None:
        """The one update at the end of `accumulate`, or none after an exception."""
        if well and self.pending is not None:
            self.move(self, self.active, self.pending)
            self.active.steps += 1
        self.pending, self.accumulating, self.renorm = None, False, False

    def backward(self, done: Forward, g: Array) -> tuple[Array, Array, Array]:
        """Gradients of the input, the weight and the bias."""
        kept = done.selected[:, None]
        g = np.where(kept, g, 0)
        with np.errstate(all="ignore"):
            dx = np.where(kept, done.backward(g * _over(done.weight)), 0)
            return dx, np.where(kept, g * done.scaled, 0).sum((0, 2)), g.sum((0, 2))
