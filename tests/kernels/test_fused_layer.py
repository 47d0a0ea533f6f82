"""The layer's native path against its spelled one in float64: every choice it serves, forwards and back."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm import BatchNormError, kernels
from batchnorm.kernels import native
from batchnorm.layers import Policy, PopulationCoupling, SecondMoment, backends
from batchnorm.layers.step import Native
from tests.sampling import slow_but

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")

CHOICES = {
    "plain": {},
    "debiased": {"method": "debiased"},
    "cumulative": {"method": "cumulative"},
    "pooled": {"method": "pooled"},
    "renorm": {"method": "renorm"},
    "renorm ramp": {"coupling": batchnorm.layers.Renorm(schedule="paper"), "method": "renorm"},
    "population": {"method": "population", "estimator": batchnorm.layers.EMA(0.5)},
    "population total": {"coupling": PopulationCoupling(), "estimator": batchnorm.layers.EMA(0.5, total=True)},
    "population constant": {"coupling": PopulationCoupling(gradient=False)},
    "second moment": {"coupling": SecondMoment(), "estimator": batchnorm.layers.EMA(0.9, correction=0)},
    "ghost": {"extent": batchnorm.layers.Ghost(3)},
    "ghost renorm": {"extent": batchnorm.layers.Ghost(3), "method": "renorm"},
    "no affine": {"affine": False},
    "no bias": {"bias": False},
    "no statistics": {"track_running_stats": False},
}
SHAPES = [((11, 6), False), ((8, 5, 7), False), ((7, 6, 5, 4), True), ((7, 17, 5, 4), False), ((3, 4, 3, 2, 5), True)]
KINDS = {2: batchnorm.BatchNorm1d, 3: batchnorm.BatchNorm1d, 4: batchnorm.BatchNorm2d, 5: batchnorm.BatchNorm3d}


def layer_of(shape, dtype=torch.float64, **choices):
    layer = KINDS[len(shape)](shape[1], dtype=dtype, **choices)
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.copy_(torch.linspace(0.5, 1.5, shape[1]))
        if layer.bias is not None:
            layer.bias.copy_(torch.linspace(-1, 1, shape[1]))
        if layer.running_mean is not None:
            layer.running_mean.add_(0.3)
            layer.running_var.mul_(1.7)
    return layer


def steps(layer, shape, last, how, count=2):
    """What some training steps leave: outputs, gradients, buffers."""
    generator = torch.Generator().manual_seed(3)
    found, dtype = [], torch.float64 if layer.running_mean is None else layer.running_mean.dtype
    for _ in range(count):
        x, residual, g = (torch.randn(shape, generator=generator, dtype=dtype) + 1 for _ in range(3))
        if last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        x.requires_grad_()
        residual.requires_grad_()
        given = {}
        if how in ("mask", "weights"):
            spread = torch.rand((shape[0], *shape[2:]), generator=generator, dtype=dtype)
            # Every group keeps more than one sample.
            kept = (torch.arange(shape[0]) % 4 != 1).view(-1, *[1] * (len(shape) - 2)).expand_as(spread)
            given[how] = kept & (spread > 0.2 if x.dim() > 2 else True) if how == "mask" else spread + 0.1 * kept
        if how == "residual":
            given["residual"] = residual
        layer.zero_grad()
        y = layer(x, **given)
        y.backward(g)
        found += [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]
        found += [residual.grad] if how == "residual" else []
    return found


@pytest.fixture
def spelled(monkeypatch):
    """Turns the native paths off."""

    def off():
        kernels.use("reference")

    yield off
    kernels.use()


@pytest.mark.parametrize("activation", slow_but([None, "relu", "leaky_relu"], {None, "leaky_relu"}))
@pytest.mark.parametrize("how", ["", "mask", "weights", "residual"])
@pytest.mark.parametrize("choice", CHOICES)
def test_native_and_spelled_agree(choice, how, activation, spelled):
    for shape, last in SHAPES:
        choices = {**CHOICES[choice], "activation": activation}
        got = steps(layer_of(shape, **choices), shape, last, how)
        spelled()
        expected = steps(layer_of(shape, **choices), shape, last, how)
        kernels.use()
        # A share held as float32 in the spelled population rule is the widest difference.
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-7, atol=1e-7), (shape, choice, how)


@pytest.mark.parametrize("choice", ["plain", "renorm", "ghost", "population", "second moment"])
def test_the_native_path_serves(choice):
    for shape, _ in SHAPES:
        y = layer_of(shape, **CHOICES[choice])(torch.randn(shape, dtype=torch.float64))
        assert isinstance(y.grad_fn.call, Native)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (9, 40, 4, 4), (4, 3, 20, 20)])
@pytest.mark.parametrize("last", [False, True])
def test_frozen_and_eval(shape, last, training, activation, spelled, monkeypatch):
    monkeypatch.setattr(backends, "_WORTHWHILE", 0)

    def run():
        layer = layer_of(shape, activation=activation)
        layer.frozen = training
        layer.train(training)
        return steps(layer, shape, last, "") + steps(layer, shape, last, "residual")

    got = run()
    spelled()
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True])
def test_a_large_frozen_layer_trains_what_is_around_it_in_every_dtype(dtype, last):
    """float32 statistics beside half-precision inputs; the output is torch's own, the gradient to rounding."""
    x = torch.randn(8, 64, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(x)
    assert x.numel() >= backends._WORTHWHILE
    found = []
    for layer in (nn.BatchNorm2d(64).eval(), batchnorm.BatchNorm2d(64)):
        layer.running_mean.copy_(torch.linspace(-1, 1, 64))
        layer.running_var.copy_(torch.linspace(0.5, 2, 64))
        if dtype is torch.float64:
            layer.double()
        if isinstance(layer, batchnorm.BatchNorm2d):
            layer.frozen = True
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = layer(given)
        y.backward(g)
        found.append((y.detach(), given.grad, layer.weight.grad, layer.bias.grad))
    assert torch.equal(found[0][0], found[1][0])
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for stock, ours in zip(found[0][1:], found[1][1:], strict=True):
        assert ours.dtype is stock.dtype
        scale = float(stock.abs().max())
        assert float((ours.double() - stock.double()).abs().max()) <= close * scale


def test_a_small_frozen_layer_is_torchs_own():
    layer = layer_of((8, 5)).eval()
    assert not hasattr(layer(torch.randn(8, 5, dtype=torch.float64)).grad_fn, "call")
    layer = layer_of((2**13, 64)).eval()
    assert isinstance(layer(torch.randn(2**13, 64, dtype=torch.float64)).grad_fn.call, Native)


@pytest.mark.parametrize(
    ("shape", "last"), [((4, 8, 300, 301), False), ((7, 64, 90, 90), True), ((40, 2000, 5, 6), False)]
)
@pytest.mark.parametrize("how", slow_but(["", "residual"], {"residual"}))
@pytest.mark.parametrize("dtype", slow_but([torch.float32, torch.float64], {torch.float64}))
def test_outputs_larger_than_the_cache(shape, last, how, dtype, spelled):
    """What is streamed past the cache, unaligned beginnings and ends included."""
    got = steps(layer_of(shape, dtype=dtype), shape, last, how, 1)
    spelled()
    for a, b in zip(got, steps(layer_of(shape, dtype=dtype), shape, last, how, 1), strict=True):
        # The spelled sums of so many float values are too inexact to compare with.
        if dtype == torch.float64 or a.dim() > 1:
            assert torch.allclose(
                a, b, rtol=1e-9 if dtype == torch.float64 else 1e-3, atol=1e-9 if dtype == torch.float64 else 1e-4
            )


@pytest.mark.parametrize("last", [False, True])
def test_in_place_keeps_one_tensor_and_the_gradient(last):
    layer = layer_of((8, 5, 6, 6), activation="leaky_relu", inplace=True)
    plain = layer_of((8, 5, 6, 6), activation="leaky_relu")
    for a, b in zip(steps(layer, (8, 5, 6, 6), last, ""), steps(plain, (8, 5, 6, 6), last, ""), strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        x = torch.randn(8, 5, 6, 6, dtype=torch.float64, requires_grad=True)
        y = layer(x)
    large = [t for t in kept if t.numel() == x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == y.data_ptr()


@pytest.mark.parametrize("choice", ["plain", "renorm", "ghost", "population total", "second moment"])
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_second_derivatives(choice, activation):
    layer = layer_of((6, 3, 4), **CHOICES[choice], activation=activation)
    layer.paused = True
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    # The r and d of renorm and the share of a population are constants to the gradient alone.
    if choice not in ("renorm", "population total"):
        assert torch.autograd.gradcheck(lambda x, r: layer(x, residual=r), (x, residual))
    y = layer(x, residual=residual)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    kernels.use("reference")
    try:
        y = layer(x, residual=residual)
        (first_spelled,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second_spelled,) = torch.autograd.grad(first_spelled.square().sum(), x)
    finally:
        kernels.use()
    assert torch.allclose(first, first_spelled, atol=1e-6)
    assert torch.allclose(second, second_spelled, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("choice", ["plain", "renorm", "population", "ghost renorm"])
def test_a_recomputed_forward_meets_the_statistics_of_its_first(choice, reentrant):
    def run(again):
        layer = layer_of((9, 4), **CHOICES[choice], activation="relu")
        x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = checkpoint(layer, x, use_reentrant=reentrant) if again else layer(x)
        y.square().sum().backward()
        return [x.grad, layer.weight.grad, *layer.buffers()]

    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(run(True), run(False), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_policies_of_values_that_are_not_finite(value):
    x = torch.randn(8, 4)
    x[2, 1] = value
    skips = batchnorm.BatchNorm1d(4)
    skips(x)
    assert int(skips.num_batches_skipped) == 1
    assert int(skips.num_batches_tracked) == 0
    assert torch.equal(skips.running_var, torch.ones(4))
    lets = batchnorm.BatchNorm1d(4, policy=Policy(nonfinite="propagate"))
    lets(x)
    assert not torch.isfinite(lets.running_mean[1])
    with pytest.raises(BatchNormError, match="batch statistics must be finite"):
        batchnorm.BatchNorm1d(4, policy=Policy(nonfinite="raise"))(x)
    clean = torch.cat([x[:2], x[3:]])
    mask = torch.arange(8) != 2
    masked, plain = batchnorm.BatchNorm1d(4), batchnorm.BatchNorm1d(4)
    assert torch.allclose(masked(x, mask=mask)[mask], plain(clean), atol=1e-6)
    assert torch.allclose(masked.running_var, plain.running_var, atol=1e-6)


def test_a_mask_of_one_value_is_refused_before_anything_moves():
    layer = batchnorm.BatchNorm1d(4)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[0] = True
    with pytest.raises(BatchNormError, match="at least 2 unmasked values"):
        layer(torch.randn(8, 4), mask=mask)
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, "same"])
def test_half_precision_data_within_their_rounding(dtype, parameters):
    x = torch.randn(16, 6, 7, 7) * 2 + 1
    layer = batchnorm.BatchNorm2d(6)
    if parameters == "same":
        layer.to(dtype)
    y = layer(x.to(dtype))
    exact = nn.functional.batch_norm(x.to(dtype).double(), None, None, training=True)
    assert y.dtype == dtype
    assert layer.running_mean.dtype == torch.float32
    assert ((y - exact).abs() <= torch.finfo(dtype).eps * (exact.abs() + 1e-2)).all()


def test_the_relu_gradient_goes_by_the_sign_of_the_output():
    layer = layer_of((50, 6, 5), dtype=torch.float32, activation="relu")
    x = torch.randn(50, 6, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    counted = (y > 0).sum((0, 2)).float()
    assert torch.equal(layer.bias.grad, counted)


def test_a_changed_parameter_shows_at_once():
    layer = batchnorm.BatchNorm1d(4)
    x = torch.randn(16, 4)
    before = layer(x)
    layer.weight.data = layer.weight.data * 2
    assert torch.allclose(layer(x), before * 2, atol=1e-5)
    layer.momentum = 0.0
    held = layer.running_mean.clone()
    layer(x)
    assert torch.equal(layer.running_mean, held)
