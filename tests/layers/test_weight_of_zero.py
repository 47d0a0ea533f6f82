"""What has no weight in a result leaves it alone, be it NaN or infinite; natively and in torch, in every precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm import BatchNorm1d, kernels
from batchnorm.layers import EMA, OnlineNorm, Policy, PowerNorm, Renorm, SecondMoment

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=[None, "reference"], autouse=True)
def _backend(request):
    kernels.use(request.param)
    yield
    kernels.use()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[torch.inf], [-torch.inf], [torch.inf, -torch.inf]])
def test_infinities_have_an_infinite_second_moment(values, dtype):
    x = torch.randn(200, 2).to(dtype)
    x[torch.arange(len(values)) * 150, 0] = torch.tensor(values, dtype=dtype)
    layer = BatchNorm1d(2, coupling=SecondMoment(), policy=Policy(nonfinite="propagate"), dtype=dtype)
    y = layer(x)
    expected = torch.where(x[:, 0].isfinite(), 0.0, torch.nan).to(dtype)
    assert torch.allclose(y[:, 0], expected, equal_nan=True)
    assert y[:, 1].isfinite().all()
    assert float(layer.running_var[0]) == torch.inf
    assert float(layer.running_mean[0]) == 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_long_channel_with_an_infinity_has_torchs_statistics(dtype, sign):
    x = torch.randn(40, 2, 90, dtype=dtype)
    x[17, 0, 33] = sign * torch.inf
    ours, stock = (kind(2, dtype=dtype) for kind in (BatchNorm1d, nn.BatchNorm1d))
    ours.adopt(batchnorm.layers.recipe_for(policy=Policy(nonfinite="propagate")))
    weights = torch.ones(40, dtype=dtype)
    ours(x, weights=weights), stock(x)
    assert float(ours.running_mean[0]) == float(stock.running_mean[0]) == sign * torch.inf
    assert ours.running_var[0].isnan()


def power(dtype, value):
    """A layer beyond its warm-up whose controller is 0, on a batch with one bad value."""
    layer = BatchNorm1d(2, method="power", coupling=PowerNorm(warmup=0), dtype=dtype)
    x = torch.randn(9, 2).to(dtype)
    x[3, 1] = value
    return layer, x.requires_grad_(), torch.randn(9, 2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_statistics_of_the_past_and_a_controller_of_zero_leave_a_bad_value_to_itself(value, dtype):
    layer, x, g = power(dtype, value)
    y = layer(x)
    y.backward(g)
    good = x.detach().isfinite()
    assert y[good].isfinite().all()
    assert torch.allclose(x.grad, g * (1 + layer.eps) ** -0.5, rtol=4 * torch.finfo(dtype).eps)


def test_a_controller_of_zero_leaves_a_second_moment_that_overflows_out_of_its_memory():
    layer, x, g = power(torch.float64, 1e200)
    layer(x).backward(g)
    # Before this batch it was 0, so that it becomes the mean of g * xhat, with the variance of before.
    expected = (g * x.detach()).mean(0) * (1 + layer.eps) ** -0.5
    torch.testing.assert_close(layer.backward_v[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_warm_up_leaves_bad_statistics_of_the_past_alone(value, dtype):
    layer = BatchNorm1d(2, coupling=PowerNorm(warmup=10), momentum=1.0, dtype=dtype)
    layer.running_var.fill_(value), layer.backward_v.fill_(value)
    x, g = torch.randn(9, 2).to(dtype).requires_grad_(), torch.randn(9, 2).to(dtype)
    y = layer(x)
    y.backward(g)
    wide = x.detach().double().requires_grad_()
    plain = wide / (wide.square().mean(0) + layer.eps).sqrt()
    plain.backward(g.double())
    close = {"rtol": 0, "atol": 8 * torch.finfo(dtype).eps}
    assert torch.allclose(y.double(), plain, **close)
    assert torch.allclose(x.grad.double(), wide.grad, **close)
    assert torch.allclose(layer.running_var.double(), wide.detach().square().mean(0) * 9 / 8, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_inference_has_the_gradients_of_torchs_spelled_form(value, masked, activation, frozen):
    layer = BatchNorm1d(3, activation=activation, negative_slope=0.3).eval()
    layer.weight.requires_grad_(not frozen), layer.bias.requires_grad_(not frozen)
    x = torch.randn(5, 3, 70)
    x[2, 1, 5], x[4, 0, 60] = value, value
    mask = torch.rand(5, 70) > 0.3
    mask[2, 5] = True
    one, two = (x.clone().requires_grad_() for _ in range(2))
    g = torch.randn(5, 3, 70)
    y = layer(one, mask=mask) if masked else layer(one)
    plain = functional.batch_norm(two, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    if activation is not None:
        plain = functional.relu(plain) if activation == "relu" else functional.leaky_relu(plain, 0.3)
    plain = torch.where(mask[:, None], plain, 0) if masked else plain
    y.backward(g), plain.backward(g)
    assert torch.allclose(y, plain, equal_nan=True)
    assert torch.allclose(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_what_underflows_to_zero_has_the_gradient_of_zero(activation, dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    layer = BatchNorm1d(1, activation=activation, negative_slope=0.25, dtype=dtype)
    x = torch.linspace(-2, 2, 8, dtype=torch.float32).to(dtype)[:, None].requires_grad_()
    with torch.no_grad():
        layer.weight.fill_(smallest)
    layer(x).backward(torch.ones(8, 1, dtype=dtype))
    stored = (x.detach().float() * smallest / x.detach().float().std(correction=0)).to(dtype)
    passes = float((stored > 0).sum() + (0.25 if activation == "leaky_relu" else 0) * (stored <= 0).sum())
    assert float(layer.bias.grad) == passes


@pytest.mark.parametrize("estimator", [EMA(correction=0), EMA(correction=1)])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_one_value_leaves_the_statistics_as_they_are(estimator, nonfinite):
    layer = BatchNorm1d(2, estimator=estimator, policy=Policy(nonfinite=nonfinite, too_few="population"))
    for weight in (1.0, 0.3, 2.5):
        layer(torch.randn(4, 2), weights=torch.tensor([0, weight, 0, 0]))
    layer(torch.randn(1, 2))
    assert torch.equal(layer.running_mean, torch.zeros(2))
    assert torch.equal(layer.running_var, torch.ones(2))
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("weight", torch.linspace(0.05, 3, 40).tolist()[::8])
def test_one_weight_in_float32_is_one_value(weight):
    layer = BatchNorm1d(2, policy=Policy(weights="reliability"))
    with pytest.raises(batchnorm.BatchNormError, match="at least 2 unmasked values"):
        layer(torch.randn(4, 2), weights=torch.tensor([0, weight, 0, 0]))


def test_padding_alone_is_no_error_whatever_the_shape():
    layer = BatchNorm1d(2)
    assert torch.equal(layer(torch.randn(1, 2), mask=torch.tensor([False])), torch.zeros(1, 2))


def test_a_bad_sample_of_a_stream_leaves_the_others_to_the_controllers():
    def layer():
        return BatchNorm1d(2, method="online", coupling=OnlineNorm(clamp=None), dtype=torch.float64)

    x, g = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    x[2, 0, 1] = torch.nan
    whole, cut = layer(), layer()
    whole(x.clone().requires_grad_()).backward(g)
    for a, b in zip(x.split([2, 1, 2]), g.split([2, 1, 2]), strict=True):
        cut(a.clone().requires_grad_()).backward(b)
    assert whole.backward_v.isfinite().all()
    assert float(whole.backward_v.abs().sum()) > 0
    for name in ("running_mean", "running_var", "backward_u", "backward_v"):
        assert torch.allclose(getattr(whole, name), getattr(cut, name), rtol=1e-12), name


def test_a_momentum_of_one_forgets_what_was_not_finite():
    layer = BatchNorm1d(2, momentum=1.0, policy=Policy(nonfinite="propagate"))
    layer(torch.full((3, 2), torch.nan))
    assert layer.running_mean.isnan().all()
    x = torch.randn(6, 2)
    layer(x)
    assert torch.allclose(layer.running_mean, x.mean(0), rtol=1e-5)


def test_limits_that_meet_are_plain_batch_norm_whatever_the_running_statistics_are():
    layer = BatchNorm1d(2, coupling=Renorm(3.0, 5.0, schedule="paper"))
    layer.running_var.fill_(torch.nan)
    x = torch.randn(6, 2)
    assert torch.allclose(layer(x), functional.batch_norm(x, None, None, training=True), atol=1e-6)
