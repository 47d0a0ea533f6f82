"""Population statistics in training, and the one rule of forward and backward behind every coupling."""

import pytest
import torch

from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import EMA, Cumulative, Diminishing, PopulationCoupling
from tests.methods.plain import affine, axes, batch_norm, close, data, moments, normalise, over, randn, run, same

SHAPE = (6, 3, 4, 5)
GAINS = [0.01, 0.1, 0.5, 1.0]


def layer_of(gain, total=False, gradient=True, correction=0):
    estimator = EMA(total=total, correction=correction)
    options = {"estimator": estimator, "coupling": PopulationCoupling(gradient), "dtype": torch.float64}
    layer = affine(BatchNorm2d(3, momentum=gain, **options))
    layer(data(0, *SHAPE))
    return layer


@pytest.mark.parametrize("total", [False, True], ids=["variance", "raw"])
@pytest.mark.parametrize("gain", GAINS)
def test_forward_and_backward_follow_the_unified_rule(gain, total):
    """y from m and S; dx = (g - a mean(g) - a c mean(g yhat)) / S, c = (x - m) / S in raw space, else from mean_B."""
    layer = layer_of(gain, total)
    x, g = data(1, *SHAPE), randn(*SHAPE, seed=7)
    before_mean, before_var = layer.running_mean.clone(), layer.running_var.clone()
    mean, var = moments(x)
    m = gain * mean + (1 - gain) * before_mean
    if total:
        second = gain * (var + mean.square()) + (1 - gain) * (before_var + before_mean.square())
        s2 = second - m.square()
    else:
        s2 = gain * var + (1 - gain) * before_var
    s = (s2 + 1e-5).sqrt()
    yhat = normalise(x, m, s2)
    c = yhat if total else (x - over(mean, x)) / over(s, x)
    upstream = g * over(layer.weight.detach(), x)
    through = over(upstream.mean(axes(x)), x) + c * over((upstream * yhat).mean(axes(x)), x)
    got = run(layer, x, g)
    assert close(got.y, yhat * over(layer.weight.detach(), x) + over(layer.bias.detach(), x))
    assert close(got.dx, (upstream - gain * through) / over(s, x))


def test_gain_one_is_batch_norm():
    plain = affine(BatchNorm2d(3, dtype=torch.float64))
    x, g = data(1, *SHAPE), randn(*SHAPE, seed=7)
    assert same(run(layer_of(1.0), x, g), run(plain, x, g))


@pytest.mark.parametrize("total", [False, True], ids=["variance", "raw"])
def test_training_output_is_that_of_inference_after_the_update(total):
    """fast.ai's running batch norm: the same formula in training and at inference."""
    layer = layer_of(0.3, total)
    x = data(1, *SHAPE)
    y = layer(x)
    assert close(y, layer.eval()(x))


def test_small_gains_leave_mean_and_correlation_in_the_gradient():
    """What makes Equinox's mode="ema" unstable: both are zero at gain 1 and grow as the gain falls."""
    x, g = data(1, *SHAPE), randn(*SHAPE, seed=7)
    left = []
    for gain in (1.0, 0.5, 0.01):
        dx = run(layer_of(gain), x, g).dx
        left.append(float(dx.sum(axes(x)).abs().sum()))
    assert left[0] < 1e-12 < 0.1 < left[1] < left[2]


def test_first_batch_of_a_debiased_average_normalises_itself():
    layer = BatchNorm2d(3, estimator=EMA(0.99, debias=True), coupling=PopulationCoupling(), dtype=torch.float64)
    x = data(1, *SHAPE)
    assert close(layer(x), batch_norm(x))


def test_diminishing_statistics_are_constants_to_the_gradient():
    layer = affine(BatchNorm2d(3, method="diminishing", dtype=torch.float64))
    for step in range(3):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step)
        got = run(layer, x, g)
        n = layer.num_batches_tracked
        # The stored variance is unbiased; what normalised this batch held the biased one of this batch.
        _, var = moments(x)
        used = layer.running_var - (x.var(axes(x), correction=1) - var) / n
        scale = layer.weight.detach() / (used + 1e-5).sqrt()
        assert close(got.dx, g * over(scale, x))
        assert close(got.y, (x - over(layer.running_mean, x)) * over(scale, x) + over(layer.bias.detach(), x))
        assert close(got.dweight, (g * normalise(x, layer.running_mean, used)).sum(axes(x)))


def test_diminishing_starts_as_batch_norm_and_averages_at_fixed_weights():
    layer = BatchNorm2d(3, method="diminishing", dtype=torch.float64)
    batches = [data(step, *SHAPE) for step in range(5)]
    assert close(layer(batches[0]), batch_norm(batches[0]))
    for batch in batches[1:]:
        layer(batch)
    assert close(layer.running_mean, torch.cat(batches).mean((0, 2, 3)))


@pytest.mark.parametrize("estimator", [Cumulative(correction=0), Diminishing(correction=0)], ids=repr)
def test_cumulative_population_is_what_has_been_seen(estimator):
    layer = BatchNorm1d(2, estimator=estimator, coupling=PopulationCoupling(), dtype=torch.float64)
    batches = [data(step, 5, 2) for step in range(4)]
    for step, batch in enumerate(batches, start=1):
        y = layer(batch)
        seen = torch.stack(batches[:step])
        assert close(y, normalise(batch, seen.mean((0, 1)), seen.var(1, correction=0).mean(0)))
