"""Inference: stored statistics, frozen layers, and mixtures with what is at hand."""

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import Mixture
from tests.methods.plain import affine, batch_norm, close, data, moments, normalise, over, randn, run, run_plain, same

X, G = data(3, 6, 3, 4, 5), randn(6, 3, 4, 5, seed=8)


def trained(**options):
    layer = affine(BatchNorm2d(3, dtype=torch.float64, momentum=0.4, **options))
    for step in range(3):
        layer(data(step, 6, 3, 4, 5))
    return layer


def mixing(**options):
    return trained(inference=Mixture(**options)).eval()


def plain_affine(layer, y):
    return y * over(layer.weight, y) + over(layer.bias, y)


@pytest.mark.parametrize("per", ["example", "batch"])
def test_weight_zero_is_plain_inference(per):
    assert same(run(mixing(weight=0.0, per=per), X, G), run(trained().eval(), X, G))


def test_weight_one_is_instance_norm_or_prediction_time_batch_norm():
    layer = mixing(weight=1.0)
    expected = run_plain(lambda x: nn.functional.instance_norm(x), X, G, layer.weight, layer.bias)
    assert same(run(layer, X, G), expected)
    layer = mixing(weight=1.0, per="batch")
    assert same(run(layer, X, G), run_plain(batch_norm, X, G, layer.weight, layer.bias))


@pytest.mark.parametrize("w", [0.1, 0.5, 0.9])
def test_raw_moments_mix_forwards_and_backwards(w):
    layer = mixing(weight=w, per="batch")
    stored_mean, stored_var = layer.running_mean.clone(), layer.running_var.clone()

    def mixed(x):
        mean, var = moments(x)
        first = w * mean + (1 - w) * stored_mean
        second = w * (var + mean.square()) + (1 - w) * (stored_var + stored_mean.square())
        return normalise(x, first, second - first.square())

    assert same(run(layer, X, G), run_plain(mixed, X, G, layer.weight, layer.bias))
    each = mixing(weight=w)
    expected = [run_plain(mixed, x[None], g[None], layer.weight, layer.bias) for x, g in zip(X, G, strict=True)]
    got = run(each, X, G)
    assert close(got.y, torch.cat([e.y for e in expected]))
    assert close(got.dx, torch.cat([e.dx for e in expected]))
    assert close(got.dweight, sum(e.dweight for e in expected))


def test_no_example_depends_on_another():
    layer = mixing(weight=0.3)
    whole = layer(X)
    assert close(torch.cat([layer(x[None]) for x in X]), whole)


@pytest.mark.parametrize("batch", [2, 8, 32])
def test_largest_value_with_weight_one_over_b_is_that_of_training(batch):
    """sup |xhat| is sqrt((1 - w) / w); with w = 1 / B it is sqrt(B - 1), the most a batch of B can give."""
    layer = BatchNorm1d(1, eps=1e-30, inference=Mixture(weight=1 / batch), dtype=torch.float64).eval()
    bound = (batch - 1) ** 0.5
    for x in (1e1, 1e4, 1e8):
        y = float(layer(torch.tensor([[x]], dtype=torch.float64)).detach().abs())
        assert y <= bound + 1e-9
    assert abs(y - bound) < 1e-9
    one = torch.zeros(batch, 1, dtype=torch.float64)
    one[0] = 1e8
    assert abs(float(layer.train()(one).detach().max()) - bound) < 1e-9


def test_prior_of_zero_is_the_batch_and_of_infinity_the_source():
    assert close(mixing(prior=0.0, per="batch")(X), run(mixing(weight=1.0, per="batch"), X, G).y)
    assert close(mixing(prior=1e16, per="batch")(X), trained().eval()(X))


@pytest.mark.parametrize("n", [2, 6])
def test_prior_counts_samples(n):
    assert close(mixing(prior=4.0, per="batch")(X[:n]), mixing(weight=n / (n + 4), per="batch")(X[:n]))


def test_prior_counts_the_samples_that_count():
    layer = mixing(prior=4.0, per="batch")
    keep = torch.tensor([True, False, True, True, False, True])
    assert close(layer(X, mask=keep)[keep], layer(X[keep]))
    weights = torch.tensor([2.0, 0.0, 1.0, 3.0, 0.0, 0.0], dtype=torch.float64)
    repeated = layer(X[[0, 0, 2, 3, 3, 3]])
    assert close(layer(X, weights=weights)[[0, 0, 2, 3, 3, 3]], repeated)


def test_variance_of_a_mixture_holds_the_distance_of_the_means():
    """N(0, 1) and N(4, 1) at one half are of variance 5, where others say 1."""
    layer = BatchNorm1d(1, eps=1e-30, inference=Mixture(weight=0.5, per="batch"), affine=False, dtype=torch.float64)
    x = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    assert close(layer.eval()(x), (x - 2) / 5**0.5)


def test_mixture_leaves_the_statistics_and_training_alone():
    layer, plain = trained(inference=Mixture(weight=0.5)), trained()
    assert same(run(layer, X, G), run(plain, X, G))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.eval()(X)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_frozen_passes_the_gradient_through_a_constant_map():
    layer = batchnorm.freeze(trained()).train()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    got = run(layer, X, G)
    scale = layer.weight.detach() / (layer.running_var + 1e-5).sqrt()
    assert close(got.dx, G * over(scale, X))
    assert close(got.y, plain_affine(layer, normalise(X, layer.running_mean, layer.running_var)).detach())
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_frozen_is_absorbed_into_the_map_before():
    layer = batchnorm.freeze(trained())
    conv = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    x = randn(2, 2, 6, 6)
    scale = layer.weight / (layer.running_var + 1e-5).sqrt()
    folded = nn.functional.conv2d(
        x, conv.weight * scale.reshape(-1, 1, 1, 1), (conv.bias - layer.running_mean) * scale + layer.bias
    )
    assert close(layer(conv(x)), folded)
