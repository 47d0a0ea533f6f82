"""Batch Renormalization (Ioffe 2017): its identities with batch norm and with inference."""

import copy

import pytest
import torch

from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import EMA, Renorm
from tests.methods.plain import affine, axes, close, data, moments, over, randn, run, same

SHAPE = (6, 3, 4, 5)


def layer_of(coupling, **options):
    layer = affine(BatchNorm2d(3, method="renorm", coupling=coupling, dtype=torch.float64, **options))
    layer(data(0, *SHAPE))
    return layer


UNLIMITED = Renorm(r_max=1e9, d_max=1e9)


def test_limits_one_and_zero_are_batch_norm():
    renorm, plain = layer_of(Renorm(1.0, 0.0)), affine(BatchNorm2d(3, dtype=torch.float64))
    x, g = data(1, *SHAPE), randn(*SHAPE, seed=7)
    assert same(run(renorm, x, g), run(plain, x, g))


def test_unclipped_output_is_that_of_inference_with_the_statistics_before():
    layer = layer_of(UNLIMITED)
    frozen = copy.deepcopy(layer).eval()
    x = data(1, *SHAPE)
    assert close(layer(x), frozen(x))
    assert not close(layer(x), frozen(x), 1e-3)


@pytest.mark.parametrize("coupling", [UNLIMITED, Renorm(1.05, 0.1)], ids=["unclipped", "clipped"])
def test_gradient_is_r_times_that_of_batch_norm(coupling):
    layer, plain = layer_of(coupling), affine(BatchNorm2d(3, dtype=torch.float64))
    x, g = data(1, *SHAPE), randn(*SHAPE, seed=7)
    mean, var = moments(x)
    sigma = (layer.running_var + 1e-5).sqrt()
    r = ((var + 1e-5).sqrt() / sigma).clamp(1 / coupling.r_max, coupling.r_max)
    d = ((mean - layer.running_mean) / sigma).clamp(-coupling.d_max, coupling.d_max)
    got, expected = run(layer, x, g), run(plain, x, g)
    assert close(got.dx, over(r, x) * expected.dx)
    assert close(got.dweight, r * expected.dweight + d * expected.dbias)
    assert close(got.dx.sum(axes(x)), torch.zeros(3, dtype=torch.float64))
    # With eps the batch's xhat has a mean square of var / (var + eps), and that much is not taken out.
    xhat = (x - over(mean, x)) / over((var + 1e-5).sqrt(), x)
    left = r * layer.weight * (g * xhat).sum(axes(x)) / (var + 1e-5).sqrt() * 1e-5 / (var + 1e-5)
    assert close((got.dx * xhat).sum(axes(x)), left.detach())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_batch_ten_deviations_away_is_shifted_by_exactly_d_max(sign):
    layer = BatchNorm1d(2, method="renorm", dtype=torch.float64)
    y = layer(randn(50, 2) + 10 * sign)
    assert close(y.mean(0), torch.full((2,), 5.0 * sign, dtype=torch.float64))


@pytest.mark.parametrize(("scale", "r"), [(100.0, 3.0), (0.01, 1 / 3)])
def test_a_batch_of_another_spread_is_scaled_by_exactly_r_max(scale, r):
    layer = BatchNorm1d(2, method="renorm", dtype=torch.float64, eps=1e-12)
    x = randn(50, 2)
    y = layer((x - x.mean(0)) * scale)
    assert close(y.std(0, correction=0), torch.full((2,), r, dtype=torch.float64), 1e-6)


def test_sigma_is_averaged_not_its_square_after_use():
    layer = BatchNorm2d(3, method="renorm", momentum=0.1, dtype=torch.float64)
    mean, sigma = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1 + 1e-5, dtype=torch.float64).sqrt()
    for step in range(4):
        x = data(step, *SHAPE)
        layer(x)
        batch_mean, var = moments(x)
        mean, sigma = 0.9 * mean + 0.1 * batch_mean, 0.9 * sigma + 0.1 * (var + 1e-5).sqrt()
    assert close(layer.running_mean, mean)
    assert close(layer.running_var, sigma.square() - 1e-5)


def test_sigma_choice_off_averages_the_variance():
    layer = BatchNorm2d(3, method="renorm", estimator=EMA(correction=0), momentum=0.1, dtype=torch.float64)
    var = torch.ones(3, dtype=torch.float64)
    for step in range(4):
        x = data(step, *SHAPE)
        layer(x)
        var = 0.9 * var + 0.1 * moments(x)[1]
    assert close(layer.running_var, var)


PAPER = [(0, 1, 0), (5_000, 1, 0), (15_000, 1 + 2 * 10 / 35, 2.5), (25_000, 1 + 2 * 20 / 35, 5), (40_000, 3, 5)]
PAPER += [(10**7, 3, 5)]
CROSSQ = [(0, 1, 0), (99_999, 1, 0), (100_000, 3, 5), (10**7, 3, 5)]


@pytest.mark.parametrize(
    ("schedule", "done", "r_max", "d_max"), [("paper", *row) for row in PAPER] + [("crossq", *row) for row in CROSSQ]
)
def test_limits_after_a_number_of_steps(schedule, done, r_max, d_max):
    """A batch far away and far wider shows both limits: y = (x - mean_B) / sigma_B * r_max + d_max."""
    layer = BatchNorm1d(2, method="renorm", coupling=Renorm(schedule=schedule), dtype=torch.float64)
    layer.num_batches_tracked.fill_(done)
    y = layer(randn(40, 2) * 1000 + 1e5)
    assert close(y.mean(0), torch.full((2,), float(d_max), dtype=torch.float64), 1e-9)
    assert close(y.std(0, correction=0), torch.full((2,), float(r_max), dtype=torch.float64), 1e-9)


def test_schedule_may_be_a_function_of_the_steps_done():
    schedule = Renorm(schedule=lambda done: (1 + 0.5 * done, 2.0 * done))
    layer = BatchNorm1d(2, method="renorm", coupling=schedule, dtype=torch.float64)
    for step in range(3):
        y = layer(randn(40, 2, seed=step) * 1000 + 1e5)
        assert close(y.mean(0), torch.full((2,), 2.0 * step, dtype=torch.float64), 1e-9)
        assert close(y.std(0, correction=0), torch.full((2,), 1 + 0.5 * step, dtype=torch.float64), 1e-9)
