"""Every method over several steps against plain loops: exact gradients by autograd, the others by the papers' rules."""

from dataclasses import replace

import pytest
import torch

import batchnorm
from batchnorm.layers import METHODS
from tests.methods.plain import Run, affine, axes, close, data, moments, normalise, over, randn, run, run_plain, same
from tests.subjects import SHORT

SHAPE = (4, 3, 2, 3)
EPS = 1e-5


class Running:
    """What the loops keep: mean and variance, moved by a gain."""

    def __init__(self, gain=0.1):
        self.mean, self.var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        self.gain, self.t = gain, 0

    def move(self, x):
        self.mean = (1 - self.gain) * self.mean + self.gain * x.mean(axes(x))
        self.var = (1 - self.gain) * self.var + self.gain * x.var(axes(x), correction=1)


class Exact(Running):
    """The derivative of what is written in `forward`."""

    def step(self, x, g, weight, bias):
        self.t += 1
        got = run_plain(self.forward, x, g, weight, bias)
        self.after(x)
        return got

    def forward(self, x):
        return normalise(x, *moments(x))

    def after(self, x):
        self.move(x)


class GhostLoop(Exact):
    def forward(self, x):
        return torch.cat([normalise(part, *moments(part)) for part in x.split(2)])


class MaskedLoop(Exact):
    def forward(self, x):
        """The first sample is padding."""
        return torch.cat([torch.zeros_like(x[:1]), normalise(x[1:], *moments(x[1:]))])

    def step(self, x, g, weight, bias):
        got = super().step(x, g, weight, bias)
        empty = torch.zeros_like(x[:1])
        return got._replace(y=torch.cat([empty, got.y[1:]]), dbias=g[1:].sum(axes(g)))


class WeightedLoop(MaskedLoop):
    def forward(self, x):
        w = torch.arange(len(x), dtype=x.dtype).reshape(-1, 1, 1, 1).expand_as(x)
        mean = (w * x).sum(axes(x)) / w.sum(axes(x))
        var = (w * (x - over(mean, x)).square()).sum(axes(x)) / w.sum(axes(x))
        return torch.cat([torch.zeros_like(x[:1]), normalise(x[1:], mean, var)])


class RenormLoop(Running):
    def __init__(self):
        super().__init__(gain=0.01)
        self.sigma = (self.var + EPS).sqrt()

    def step(self, x, g, weight, bias):
        mean, sigma = x.mean(axes(x)), (x.var(axes(x), correction=0) + EPS).sqrt()
        r, d = (sigma / self.sigma).clamp(1 / 3, 3), ((mean - self.mean) / self.sigma).clamp(-5, 5)
        got = run_plain(lambda x: normalise(x, *moments(x)) * over(r, x) + over(d, x), x, g, weight, bias)
        self.mean = 0.99 * self.mean + 0.01 * mean
        self.sigma = 0.99 * self.sigma + 0.01 * sigma
        self.var = self.sigma.square() - EPS
        return got


class PopulationLoop(Exact):
    def forward(self, x):
        mean, var = moments(x)
        return normalise(x, 0.1 * mean + 0.9 * self.mean, 0.1 * var + 0.9 * self.var)


class DiminishingLoop(Exact):
    def forward(self, x):
        self.gain = 1 / self.t
        mean, var = (m.detach() for m in moments(x))
        a = self.gain
        return normalise(x, a * mean + (1 - a) * self.mean, a * var + (1 - a) * self.var)


class BackwardLoop(Running):
    """What the four that do not differentiate share: their own rule for the gradient at the normalised data."""

    def affine(self, z, factor, g, weight, bias, dx):
        y = z * over(factor * weight, z) + over(bias, z)
        return Run(y, dx, (g * z * over(factor, z)).sum(axes(g)), g.sum(axes(g)))


class MabnLoop(BackwardLoop):
    """Section 2 of the paper with window 3, one step of warm-up, the correction from the third step on."""

    def __init__(self):
        super().__init__(gain=0.02)
        self.squares, self.psis = [], []

    def windowed(self, values):
        return torch.stack(values[-3:]).mean(0) if self.t > 1 and len(values) >= 3 else values[-1]

    def step(self, x, g, weight, bias):
        self.t += 1
        self.squares.append(x.square().mean(axes(x)))
        s = (self.windowed(self.squares) + EPS).sqrt()
        z = x / over(s, x)
        r = (s / (self.var + EPS).sqrt()).clamp(1 / 5, 5) if self.t > 2 else torch.ones_like(s)
        upstream = g * over(weight * r, g)
        self.psis.append((upstream * z).mean(axes(x)))
        dx = (upstream - z * over(self.windowed(self.psis), x)) / over(s, x)
        self.var = 0.98 * self.var + 0.02 * self.squares[-1]
        return self.affine(z, r, g, weight, bias, dx)


class PowerLoop(BackwardLoop):
    """Algorithm 2 of PowerNorm: the running moment from before this batch, and a controller, after one warm-up step."""

    def __init__(self):
        super().__init__()
        self.v = torch.zeros(3, dtype=torch.float64)

    def step(self, x, g, weight, bias):
        self.t += 1
        square = x.square().mean(axes(x))
        s = ((square if self.t == 1 else self.var) + EPS).sqrt()
        z = x / over(s, x)
        upstream = g * over(weight, g)
        held = 0.1 * self.v
        taken = upstream - z * over(held, x)
        self.v = self.v + (taken * z).mean(axes(x))
        used = (upstream * z).mean(axes(x)) if self.t == 1 else held
        dx = (upstream - z * over(used, x)) / over(s, x)
        self.var = 0.9 * self.var + 0.1 * square
        return self.affine(z, torch.ones_like(s), g, weight, bias, dx)


class UnifiedLoop(BackwardLoop):
    """Unified Normalization with window 3: geometric mean forwards, arithmetic and moving mean backwards."""

    def __init__(self):
        super().__init__()
        self.squares, self.psis, self.average = [], [], torch.zeros(3, dtype=torch.float64)

    def step(self, x, g, weight, bias):
        self.t += 1
        active = self.t > 1 and self.t >= 3
        self.squares.append(x.square().mean(axes(x)))
        used = torch.stack(self.squares[-3:]).log().mean(0).exp() if active else self.squares[-1]
        s = (used + EPS).sqrt()
        z = x / over(s, x)
        r = (s / (self.var + EPS).sqrt()).clamp(1 / 5, 5) if active else torch.ones_like(s)
        upstream = g * over(weight * r, g)
        self.psis.append((upstream * z).mean(axes(x)))
        psi = torch.stack(self.psis[-3:]).mean(0) if active else self.psis[-1]
        self.average = 0.9 * self.average + 0.1 * psi
        dx = (upstream - z * over(self.average if active else psi, x)) / over(s, x)
        self.var = 0.9 * self.var + 0.1 * self.squares[-1]
        return self.affine(z, torch.ones_like(s), g, weight, bias, dx)


class OnlineLoop(BackwardLoop):
    """Equations 8 to 11, one sample after the other, and the clamp of the released code."""

    def __init__(self):
        super().__init__(gain=0.001)
        self.u, self.v = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def step(self, x, g, weight, bias):
        runs = [self.sample(*pair, weight, bias) for pair in zip(x.split(1), g.split(1), strict=True)]
        y, dx = torch.cat([r.y for r in runs]), torch.cat([r.dx for r in runs])
        return Run(y, dx, sum(r.dweight for r in runs), sum(r.dbias for r in runs))

    def sample(self, x, g, weight, bias):
        s = (self.var + EPS).sqrt()
        z = (x - over(self.mean, x)) / over(s, x)
        outside = (z * over(weight, z) + over(bias, z)).abs() > 5
        g = torch.where(outside, 0.0, g)
        g1 = g * over(weight, g) - over(0.01 * self.v, x) * z
        self.v = self.v + (g1 * z).mean(axes(x))
        g2 = g1 / over(s, x)
        dx = g2 - over(0.01 * self.u, x)
        self.u = self.u + dx.mean(axes(x))
        mean, var = moments(x)
        self.var = 0.999 * self.var + 0.001 * var + 0.001 * 0.999 * (mean - self.mean).square()
        self.mean = 0.999 * self.mean + 0.001 * mean
        got = self.affine(z, torch.ones_like(s), g, weight, bias, dx)
        return got._replace(y=got.y.clamp(-5, 5))


LOOPS = {
    **dict.fromkeys(("batchnorm", "sync", "example-weighing", "banks"), Exact),
    "ghost": GhostLoop,
    "masked": MaskedLoop,
    "weighted": WeightedLoop,
    "renorm": RenormLoop,
    "population": PopulationLoop,
    "diminishing": DiminishingLoop,
    "mabn": MabnLoop,
    "power": PowerLoop,
    "unified": UnifiedLoop,
    "online": OnlineLoop,
}
# Their statistics have tests of their own; here it is what flows back.
OTHER_STATISTICS = ("debiased", "cumulative", "pooled", "window", "masked", "weighted")


def given(method, x):
    if method == "masked":
        keep = torch.ones(len(x), *x.shape[2:], dtype=torch.bool)
        keep[0] = False
        return {"mask": keep}
    return {"weights": torch.arange(len(x), dtype=x.dtype)} if method == "weighted" else {}


@pytest.mark.parametrize("method", [method for method in METHODS if method != "cbn"])
def test_seven_steps_are_those_of_a_plain_loop(method):
    layer = affine(batchnorm.BatchNorm2d(3, method=method, dtype=torch.float64, **SHORT.get(method, {})))
    loop = LOOPS.get(method, Exact)()
    for step in range(7):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step + 50)
        got = run(layer, x, g, **given(method, x))
        assert same(got, loop.step(x, g, layer.weight.detach(), layer.bias.detach())), step
    if method not in OTHER_STATISTICS:
        second_moments = method in ("mabn", "power", "unified")
        assert close(layer.running_var, loop.var)
        assert close(layer.running_mean, torch.zeros_like(loop.mean) if second_moments else loop.mean)


@pytest.mark.parametrize("through", [True, False])
def test_cross_iteration_is_the_derivative_of_its_compensated_moments(through):
    """Window 3: the gradient of the weights looked back at, through the carried moments or the present batch alone."""
    coupling = replace(SHORT["cbn"]["coupling"], through_weights=through)
    layer = affine(batchnorm.BatchNorm1d(3, method="cbn", dtype=torch.float64, coupling=coupling))
    linear = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    layer.attach(linear)
    past = []
    for step in range(7):
        x, g = data(step, 8, 2), randn(8, 3, seed=step)
        theta = linear.weight.detach().clone().requires_grad_()
        z = x @ theta.T
        mean, square = z.mean(0), z.square().mean(0)
        means, squares = [mean], [torch.maximum(square, mean.square())]
        for old_mean, old_square, slope_mean, slope_square, old in past[-2:] if step > 0 else []:
            moved = (theta if through else theta.detach()) - old
            carried = old_mean + (slope_mean * moved).sum(1)
            means.append(carried)
            squares.append(torch.maximum(old_square + (slope_square * moved).sum(1), carried.square()))
        m = torch.stack(means).mean(0)
        var = torch.stack(squares).mean(0) - m.square()
        y = normalise(z, m, var) * layer.weight.detach() + layer.bias.detach()
        (expected,) = torch.autograd.grad(y, theta, g, retain_graph=True)
        linear.zero_grad()
        got = layer(linear(x))
        got.backward(g)
        assert close(got, y, 1e-11)
        assert close(linear.weight.grad, expected, 1e-10)
        slopes = [torch.autograd.grad(value.sum(), theta, retain_graph=True)[0] for value in (mean, square)]
        past.append((mean.detach(), square.detach(), *slopes, theta.detach()))
        with torch.no_grad():
            linear.weight.add_(randn(3, 2, seed=step + 90), alpha=0.2)
