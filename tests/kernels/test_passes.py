"""The four passes against autograd of a float64 reference, group by group, and the two spellings."""

import pytest
import torch

from batchnorm import BatchNormError, kernels
from batchnorm.kernels import reference
from batchnorm.layers import EMA, PopulationCoupling, passing, step
from batchnorm.layers.choices.situation import Now, State


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 5), (7, 4, 3, 2)])
def test_forward_and_backward_equal_autograd_of_each_group(groups, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
    g = torch.randn(shape, dtype=torch.float64, generator=generator)
    sizes = [3, 2, 2] if groups == 3 else [7]
    parts = [torch.nn.functional.batch_norm(p, None, None, training=True, eps=1e-5) for p in x.split(sizes)]
    expected = torch.cat(parts)
    (gradient,) = torch.autograd.grad(expected, x, g)
    passes = kernels.select(x)
    with torch.no_grad():
        raw = passes.reduce(x, None, groups)
        invstd = (raw.m2 / raw.count + 1e-5).rsqrt()
        y = passes.apply(x, raw.mean, invstd, torch.zeros_like(invstd), None)
        sum_g, sum_gx = passes.backward_reduce(g, x, raw.mean, invstd, None)
        u, v = invstd * sum_g / raw.count, invstd * sum_gx / raw.count * invstd
        dx = passes.backward_apply(g, x, raw.mean, invstd, u, v, None)
    assert torch.allclose(y, expected, atol=1e-12)
    assert torch.allclose(dx, gradient, atol=1e-12)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.5, 1.0])
def test_the_backward_rule_equals_autograd_of_the_spelled_forward(gain):
    generator = torch.Generator().manual_seed(1)
    x, w, b = (torch.randn(s, dtype=torch.float64, generator=generator) for s in ((5, 3, 4), (3,), (3,)))
    g = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)
    population = State(torch.full((3,), 0.4, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64))
    now, sharing = Now(torch.ones((), dtype=torch.float64), gain, 1e-5, EMA()), passing.Sharing()
    plan = passing.Plan(lambda found: PopulationCoupling().plan(population, now), 1e-5)
    inputs = [t.clone().requires_grad_() for t in (x, w, b)]
    expected = torch.autograd.grad(passing.spelled(*inputs, plan, sharing), inputs, g)
    y = step.pass_through(*inputs, plan, passing.batch_moments(x, sharing), sharing)
    got = torch.autograd.grad(y, inputs, g)
    assert all(torch.allclose(a, e, atol=1e-13) for a, e in zip(got, expected, strict=True))


def test_a_backend_registers_once_and_serves_what_it_says(monkeypatch):
    monkeypatch.setattr(kernels.registry, "_backends", list(kernels.registry._backends))
    only_3d = kernels.registry.REFERENCE._replace(name="mine", serves=lambda x: x.dim() == 3)
    kernels.register(only_3d)
    assert kernels.select(torch.zeros(1, 2, 3)).name == "mine"
    assert kernels.select(torch.zeros(1, 2)).name in ("native", "reference")
    with pytest.raises(BatchNormError, match="'mine' is registered already"):
        kernels.register(only_3d)


def test_reduce_is_differentiable():
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def moments(x):
        raw = reference.reduce(x)
        return raw.mean, raw.m2

    assert torch.autograd.gradcheck(moments, (x,))
