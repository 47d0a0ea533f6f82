"""Numbers, vectors and statistics that are learned: their gradient is autograd's, however the layer is called."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNorm1d, kernels
from batchnorm.layers import Coupling, Ghost, Numbers, Vectors

DOUBLE, EPS = torch.float64, 1e-5


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Learned(Coupling):
    """Parameters of its own, in whatever place."""

    p: Any = None


class Shares(Learned):
    """One parameter in three places."""

    def plan(self, state, now):
        return Numbers(self.p, self.p), Vectors(state.mean, rest=(1 - self.p) * state.var)

    def formula(self, m, v, mean, var):
        return self.p * m + (1 - self.p) * mean, self.p * v + (1 - self.p) * var


class Mixture(Learned):
    """Moments that mix as E[x] and E[x^2]."""

    def plan(self, state, now):
        w = self.p.sigmoid()
        return Numbers(w, w, 1 - w), Vectors(state.mean, rest=(1 - w) * state.var)

    def formula(self, m, v, mean, var):
        w = self.p.sigmoid()
        return w * m + (1 - w) * mean, w * v + (1 - w) * var + w * (1 - w) * (m - mean) ** 2


class Geometric(Learned):
    """A share of the logarithm."""

    def plan(self, state, now):
        return Numbers(share=self.p, log=True), Vectors(rest=(1 - self.p) * state.var.log())

    def formula(self, m, v, mean, var):
        return m, (self.p * v.log() + (1 - self.p) * var.log()).exp()


class Rest(Learned):
    """A vector that joins the variance."""

    def plan(self, state, now):
        return Numbers(share=0.5), Vectors(rest=self.p * state.var)

    def formula(self, m, v, mean, var):
        return m, 0.5 * v + self.p * var


class Centre(Learned):
    """A vector in the place of the mean."""

    def plan(self, state, now):
        return Numbers(0.3, spread=1.0), Vectors(pm=self.p * state.mean)

    def formula(self, m, v, mean, var):
        return 0.3 * m + 0.7 * self.p * mean, v + (m - self.p * mean) ** 2


class Floor(Learned):
    """Statistics that no numbers give."""

    def statistics(self, batch, state, now):
        return batch.mean, 0.5 * batch.var(0) + self.p.square()

    def formula(self, m, v, mean, var):
        return m, 0.5 * v + self.p.square()


KINDS = Shares, Mixture, Geometric, Rest, Centre, Floor


def made(kind, shape):
    p = (torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.3).requires_grad_()
    choice = kind(p)
    return p, choice


def layer_of(choice, **options):
    layer = BatchNorm1d(3, coupling=choice, dtype=DOUBLE, momentum=0.0, **options)
    with torch.no_grad():
        layer.running_mean.copy_(randn(3, seed=2))
        layer.running_var.copy_(randn(3, seed=3).square() + 0.3)
    return layer


def formula(choice, layer, x, counts, groups):
    """The output in plain torch."""
    parts = []
    for xs, ws in zip(x.tensor_split(groups), counts.tensor_split(groups), strict=True):
        n = ws.sum()
        m = (ws * xs).sum((0, 2)) / n
        v = (ws * (xs - m[:, None]) ** 2).sum((0, 2)) / n
        mean, var = choice.formula(m, v, layer.running_mean, layer.running_var)
        parts.append((xs - mean[:, None]) / (var + EPS).sqrt()[:, None])
    return torch.cat(parts) * (counts != 0)


def called(way, layer, x, mask):
    if way == "checkpoint":
        return checkpoint(layer, x, mask, use_reentrant=False)
    if way == "compiled":
        return torch.compile(layer, backend="aot_eager")(x, mask)
    return layer(x, mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (3,)], ids=["one", "by channel"])
@pytest.mark.parametrize("way", ["plain", "reference", "masked", "ghost", "checkpoint", "compiled", "create_graph"])
def test_the_gradient_is_that_of_the_formula(kind, shape, way):
    p, choice = made(kind, shape)
    layer = layer_of(choice, extent=Ghost(4) if way == "ghost" else None)
    x, g = randn(12, 3, 4, seed=4).requires_grad_(), randn(12, 3, 4, seed=5)
    mask = randn(12, 4, seed=6) > -0.5 if way == "masked" else None
    counts = torch.ones(12, 1, 4, dtype=DOUBLE) if mask is None else mask[:, None].to(DOUBLE)
    kernels.use("reference" if way == "reference" else None)
    try:
        y = called(way, layer, x, mask)
        got = torch.autograd.grad((y * g).sum(), (p, x), create_graph=way == "create_graph")
    finally:
        kernels.use()
    expected = formula(choice, layer, x, counts, 3 if way == "ghost" else 1)
    assert torch.allclose(y, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(got, torch.autograd.grad((expected * g).sum(), (p, x)), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_reach_it(kind):
    p, choice = made(kind, (3,))
    layer, x = layer_of(choice), randn(6, 3, 2, seed=7).requires_grad_()

    def output(x, p):
        object.__setattr__(choice, "p", p)
        return layer(x)

    assert torch.autograd.gradgradcheck(output, (x, p))


def test_a_learned_vector_reaches_its_parameter_in_a_large_compiled_graph():
    p, choice = made(Rest, (3,))
    layer, x = layer_of(choice), randn(1 << 10, 3, 1 << 8, seed=8)
    torch.compile(layer, backend="aot_eager")(x).pow(3).sum().backward()
    (expected,) = torch.autograd.grad(
        formula(choice, layer, x, torch.ones(len(x), 1, x.shape[2], dtype=DOUBLE), 1).pow(3).sum(), p
    )
    assert torch.allclose(p.grad, expected)


@pytest.mark.parametrize("way", ["plain", "compiled", "create_graph"])
def test_limits_may_be_learned(way):
    p = torch.tensor(1.2, dtype=DOUBLE, requires_grad=True)

    @dataclass(frozen=True, eq=False)
    class Limits(Coupling):
        def plan(self, state, now):
            return Numbers(low=1 / p, high=p, shift=0.5 * p), Vectors(state.mean, state.var)

    layer, x, g = layer_of(Limits()), randn(8, 3, 2, seed=9) * 5, randn(8, 3, 2, seed=10)
    (got,) = torch.autograd.grad((called(way, layer, x, None) * g).sum(), p, create_graph=way == "create_graph")
    m, v = x.mean((0, 2)), x.var((0, 2), correction=0)
    mean, var = layer.running_mean, layer.running_var
    ratio = torch.minimum(torch.maximum(((v + EPS) / (var + EPS)).sqrt(), 1 / p), p)
    offset = torch.minimum(torch.maximum((m - mean) / (var + EPS).sqrt(), -0.5 * p), 0.5 * p)
    y = (x - m[:, None]) / (v + EPS).sqrt()[:, None] * ratio[:, None] + offset[:, None]
    (expected,) = torch.autograd.grad((y * g).sum(), p)
    assert torch.allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("way", ["plain", "compiled", "create_graph"])
def test_of_a_detached_coupling_learned_numbers_are_constants_too(way):
    p, choice = made(Shares, ())
    object.__setattr__(choice, "detached", True)
    layer, x = layer_of(choice), randn(8, 3, 2, seed=11).requires_grad_()
    loss = called(way, layer, x, None).pow(3).sum()
    gx, gp = torch.autograd.grad(loss, (x, p), allow_unused=True, create_graph=way == "create_graph")
    assert gp is None
    scale = 1 / (choice.formula(0, x.var((0, 2), correction=0), 0, layer.running_var)[1] + EPS).sqrt()
    assert torch.allclose(gx, 3 * layer(x).square() * scale[:, None])


class OfTheBatch(Learned):
    """A learned function of the batch's variance, which is a constant to the gradient of the data."""

    def plan(self, state, now):
        w = (self.p * now.batch.m2 / now.batch.count).sigmoid()
        return Numbers(share=w), Vectors(rest=(1 - w) * state.var)

    def formula(self, m, v, mean, var):
        w = (self.p * v.detach()).sigmoid()
        return m, w * v + (1 - w) * var


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("way", ["plain", "reference", "ghost", "checkpoint", "compiled", "create_graph"])
def test_what_a_choice_makes_of_the_moments_is_a_constant_to_the_data(way, learned):
    p, choice = made(OfTheBatch, (3,))
    p.requires_grad_(learned)
    layer = layer_of(choice, extent=Ghost(4) if way == "ghost" else None)
    x, g = randn(12, 3, 4, seed=12).requires_grad_(), randn(12, 3, 4, seed=13)
    leaves = (x, p) if learned else (x,)
    kernels.use("reference" if way == "reference" else None)
    try:
        got = torch.autograd.grad((called(way, layer, x, None) * g).sum(), leaves, create_graph=way == "create_graph")
    finally:
        kernels.use()
    expected = formula(choice, layer, x, torch.ones(12, 1, 4, dtype=DOUBLE), 3 if way == "ghost" else 1)
    for one, other in zip(got, torch.autograd.grad((expected * g).sum(), leaves), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)
