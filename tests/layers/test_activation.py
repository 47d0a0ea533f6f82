"""Activation and residual as a part of the layer, and the form that keeps its output alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm import kernels
from batchnorm.layers import Policy


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


ACTIVATIONS = ["relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu"]


def apart(stock, x, residual, activation):
    y = stock(x) if residual is None else stock(x) + residual
    return functional.leaky_relu(y, 0.2) if activation == "leaky_relu" else getattr(functional, activation)(y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_modules_one_after_another(activation, with_residual, training):
    stock = nn.BatchNorm2d(3, dtype=torch.float64)
    layer = batchnorm.BatchNorm2d(3, activation=activation, negative_slope=0.2, dtype=torch.float64)
    with torch.no_grad():
        stock.weight.copy_(torch.tensor([4.0, -2.0, 0.0]))
    layer.load_state_dict(stock.state_dict())
    g = randn(4, 3, 5, 5, seed=1)
    found = []
    for one in (stock.train(training), layer.train(training)):
        x = randn(4, 3, 5, 5).requires_grad_()
        r = randn(4, 3, 5, 5, seed=2).requires_grad_() if with_residual else None
        y = apart(one, x, r, activation) if one is stock else one(x, residual=r)
        y.backward(g)
        found.append([y.detach(), x.grad, one.weight.grad, one.bias.grad, *([] if r is None else [r.grad])])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives_pass_through_the_activation(activation):
    layer = batchnorm.BatchNorm1d(3, activation=activation, dtype=torch.float64)
    x = randn(6, 3).requires_grad_()
    weight = (layer.weight.detach() + torch.tensor([2.0, -3.0, 0.5])).requires_grad_()

    def outputs(x, weight):
        return torch.func.functional_call(copy.deepcopy(layer), {"weight": weight}, (x,))

    assert torch.autograd.gradgradcheck(outputs, (x, weight))


@pytest.mark.parametrize("passes", [None, "reference"])
@pytest.mark.parametrize("activation", ["relu6", "silu", "hardswish", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_and_derivatives_are_as_exact_as_torchs(dtype, activation, passes):
    # A layer that changes nothing, so that what is seen is the activation alone.
    layer = batchnorm.BatchNorm1d(1, eps=2**-10, activation=activation, dtype=dtype).eval()
    layer.running_var.fill_(1 - 2**-10)
    x = torch.cat([torch.linspace(-20, 20, 40001), torch.tensor([0.0, -3.0, 3.0, 6.0])]).to(dtype)
    exact = x.to(torch.float64, copy=True).requires_grad_()
    getattr(functional, activation)(exact).sum().backward()
    truth = getattr(functional, activation)(exact.detach())

    def errors(function):
        one = x.clone().requires_grad_()
        y = function(one)
        y.sum().backward()
        return [
            float((found.detach().double() - true).abs().max()) for found, true in ((y, truth), (one.grad, exact.grad))
        ]

    kernels.use(passes)
    try:
        ours = errors(lambda x: layer(x[:, None])[:, 0])
    finally:
        kernels.use()
    theirs = errors(getattr(functional, activation))
    # In float64 the truth is torch's own.
    rounding = 1e-14 if dtype is torch.float64 else 0.0
    assert all(a <= b + rounding for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("activation", ["relu6", "silu", "hardswish", "gelu"])
def test_values_that_are_not_finite_stay_so(activation):
    layer = batchnorm.BatchNorm1d(1, eps=2**-10, activation=activation).eval()
    layer.running_var.fill_(1 - 2**-10)
    found = layer(torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [-200.0], [200.0]]))[:, 0]
    assert found[0].isnan()
    assert found[1] == (6.0 if activation == "relu6" else torch.inf)
    assert found[2] == 0 if activation == "relu6" else found[2].isnan()
    assert found[3:].tolist() == [0.0, 6.0 if activation == "relu6" else 200.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_in_place_keeps_one_tensor_and_its_gradient_is_within_the_bound(dtype):
    layer = batchnorm.BatchNorm2d(3, activation="leaky_relu", inplace=True, dtype=dtype)
    plain = batchnorm.BatchNorm2d(3, activation="leaky_relu", dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -0.5, 0.05]))
        layer.bias.copy_(torch.tensor([0.0, 3.0, -1.0]))
    plain.load_state_dict(layer.state_dict())
    sizes = []

    def count(tensor):
        sizes.append(tensor.numel())
        return tensor

    data = randn(8, 3, 7, 7, dtype=dtype)
    x = data.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = layer(x)
    assert sum(size >= x.numel() for size in sizes) == 1
    g = randn(8, 3, 7, 7, seed=1, dtype=dtype)
    y.backward(g)
    reference = data.double().requires_grad_()
    expected = plain(reference)
    expected.backward(g.double())
    unit = torch.finfo(dtype).eps / 2
    z = nn.functional.batch_norm(reference.detach(), None, None, plain.weight, plain.bias, True)
    bound = 9 * (z.abs() + plain.bias[:, None, None].abs()) * unit / plain.weight[:, None, None].abs()
    assert torch.allclose(y.double(), expected, atol=20 * unit)
    # dx moves with xhat: its error is that of xhat times scale and the mean of g * xhat, well within this.
    assert (x.grad.double() - reference.grad).abs().max() <= 20 * bound.max() * g.abs().max()
    assert torch.allclose(layer.weight.grad.double(), plain.weight.grad, rtol=1e4 * unit, atol=1e4 * unit)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(layer, name).double(), getattr(plain, name), rtol=100 * unit)


def test_in_place_activates_on_every_way():
    x = randn(8, 3, dtype=torch.float32)
    options = {"activation": "leaky_relu", "inplace": True}
    mask = torch.arange(8) > 2
    masked = batchnorm.BatchNorm1d(3, **options)(x, mask=mask)
    frozen = batchnorm.freeze(batchnorm.BatchNorm1d(3, **options))(x)
    alone = batchnorm.BatchNorm1d(3, policy=Policy(too_few="population"), **options)(x[:1])
    renormed = batchnorm.convert(batchnorm.BatchNorm1d(3, **options), "renorm")(x)
    plain = batchnorm.BatchNorm1d(3)
    assert torch.allclose(masked[mask], functional.leaky_relu(plain(x[mask])), atol=1e-6)
    assert torch.allclose(frozen, functional.leaky_relu(x), atol=1e-4)
    assert torch.allclose(alone, functional.leaky_relu(x[:1]), atol=1e-4)
    assert torch.allclose(renormed, functional.leaky_relu(batchnorm.BatchNorm1d(3, method="renorm")(x)), atol=1e-6)


def test_in_place_refuses_what_it_would_lose():
    layer = batchnorm.BatchNorm1d(3, activation="leaky_relu", inplace=True)
    x = randn(8, 3, dtype=torch.float32).requires_grad_()
    with pytest.raises(batchnorm.BatchNormError, match="create_graph must be False"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(batchnorm.BatchNormError, match="residual must be None"):
        layer(x, residual=x)
    with torch.no_grad():
        layer.weight[1] = 1e-4
    before = layer.running_mean.clone()
    with pytest.raises(batchnorm.BatchNormError, match=r"weight must be at least 0\.001"):
        layer(x)
    assert torch.equal(layer.running_mean, before)
    with pytest.raises(batchnorm.BatchNormError, match="'leaky_relu' with inplace=True"):
        batchnorm.BatchNorm1d(3, activation="relu", inplace=True)


def test_padding_is_zero_with_a_residual_too():
    layer = batchnorm.BatchNorm1d(2, activation="relu")
    x, r = randn(3, 2, 4, dtype=torch.float32), randn(3, 2, 4, seed=1, dtype=torch.float32).requires_grad_()
    lengths = torch.tensor([4, 2, 1])
    y = layer(x, lengths=lengths, residual=r)
    y.sum().backward()
    for sample, length in enumerate(lengths):
        assert not y[sample, :, length:].any()
        assert not r.grad[sample, :, length:].any()


@pytest.mark.parametrize("passes", [None, "reference"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_padding_is_zero_whatever_the_residual_holds_there(training, activation, passes):
    layer = batchnorm.BatchNorm1d(3, activation=activation, dtype=torch.float64).train(training)
    mask = torch.tensor([True, True, True, True, False, False])
    x, residual = randn(6, 3).requires_grad_(), (randn(6, 3, seed=1) + 2).requires_grad_()
    alone = copy.deepcopy(layer)
    kernels.use(passes)
    try:
        y = layer(x, mask=mask, residual=residual)
        grads = torch.autograd.grad(y.square().sum(), (x, residual))
    finally:
        kernels.use()
    assert torch.allclose(y[mask], alone(x[mask], residual=residual[mask]), atol=1e-12)
    assert not any(t[~mask].any() for t in (y, *grads))
    assert all(t[mask].any() for t in (y, *grads))
