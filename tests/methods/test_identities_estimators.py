"""How running statistics move: closed forms of every estimator."""

from itertools import permutations

import pytest
import torch
from torch.optim.swa_utils import update_bn

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import EMA, Cumulative, Diminishing, Pooled, Window
from tests.methods.plain import batch_norm, close, data, randn


def fed(estimator, batches, **options):
    layer = BatchNorm1d(batches[0].shape[1], estimator=estimator, dtype=torch.float64, **options)
    for batch in batches:
        layer(batch)
    return layer


def weighted(weights, values):
    return sum(w * v for w, v in zip(weights, values, strict=True))


BATCHES = [data(step, 6, 3) for step in range(7)]
RAGGED = [data(step, size, 3) for step, size in enumerate((8, 2, 5, 9, 3))]
MEANS = [x.mean(0) for x in BATCHES]
BIASED = [x.var(0, correction=0) for x in BATCHES]
UNBIASED = [x.var(0, correction=1) for x in BATCHES]


def test_normalises_with_the_biased_variance_and_stores_the_unbiased_one():
    x = randn(5, 3, 4, 4) * 3 + 2
    layer = BatchNorm2d(3, momentum=1.0, dtype=torch.float64)
    assert close(layer(x), batch_norm(x))
    assert close(layer.running_mean, x.mean((0, 2, 3)))
    assert close(layer.running_var, x.var((0, 2, 3), correction=1))


@pytest.mark.parametrize(("correction", "factor"), [(0, 0.5), (1, 1.0)])
def test_variances_of_all_pairs_average_to_the_variance_or_half_of_it(correction, factor):
    population = randn(6, 1)
    pairs = [torch.stack(pair) for pair in permutations(population, 2)]
    layer = fed(Cumulative(correction=correction), pairs)
    assert close(layer.running_var, factor * population.var(0, correction=1))


def test_cumulative_is_the_plain_mean_over_equal_batches():
    layer = fed(Cumulative(), BATCHES)
    assert close(layer.running_mean, torch.cat(BATCHES).mean(0))
    assert close(layer.running_var, sum(UNBIASED) / len(BATCHES))


def test_cumulative_is_momentum_none():
    named, spelled = fed(Cumulative(), BATCHES), fed(EMA(), BATCHES, momentum=None)
    stock = torch.nn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    for batch in BATCHES:
        stock(batch)
    for layer in (named, spelled):
        assert close(layer.running_mean, stock.running_mean)
        assert close(layer.running_var, stock.running_var)


def test_pooled_is_exact_for_ragged_and_sorted_batches_where_cumulative_is_not():
    everything = torch.cat(RAGGED)
    pooled, cumulative = fed(Pooled(), RAGGED), fed(Cumulative(), RAGGED)
    assert close(pooled.running_mean, everything.mean(0))
    assert close(pooled.running_var, everything.var(0, correction=1))
    assert (cumulative.running_mean - everything.mean(0)).abs().max() > 0.1
    assert (cumulative.running_var - everything.var(0, correction=1)).abs().max() > 0.1


def test_the_spread_of_batch_means_is_what_cumulative_leaves_out():
    total, within = fed(Pooled(correction=0), BATCHES), fed(Cumulative(correction=0), BATCHES)
    between = torch.stack(MEANS).var(0, correction=0)
    assert close(total.running_var, within.running_var + between)


def test_pooled_is_the_sample_weighted_average_of_swa():
    n, mean = 0, torch.zeros(3, dtype=torch.float64)
    for x in RAGGED:
        gain = len(x) / (n + len(x))
        mean, n = (1 - gain) * mean + gain * x.mean(0), n + len(x)
    assert close(fed(Pooled(), RAGGED).running_mean, mean)


@pytest.mark.parametrize("momentum", [0.01, 0.1, 0.5])
def test_moving_average_forgets_its_initial_value_by_the_power_of_the_decay(momentum):
    constant = torch.full((4, 1), 5.0, dtype=torch.float64)
    layer = fed(EMA(), [constant] * 30, momentum=momentum)
    assert close(layer.running_mean, torch.tensor([5 * (1 - (1 - momentum) ** 30)], dtype=torch.float64))
    assert close(layer.running_var, torch.tensor([(1 - momentum) ** 30], dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0.1, 0.05])
def test_noise_of_a_moving_average_is_that_of_a_window_of_2_minus_a_over_a_batches(momentum):
    """The squares of the weights of the batches add up to a / (2 - a): 19 batches at 0.1."""
    zero, one = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    weights = [float(fed(EMA(), [one] + [zero] * age, momentum=momentum).running_mean) for age in range(160)]
    assert abs(sum(w * w for w in weights) - momentum / (2 - momentum)) < 1e-5


@pytest.mark.parametrize("total", [False, True])
def test_debiased_is_the_average_with_weights_that_sum_to_one(total):
    decay, t = 0.8, len(BATCHES)
    layer = fed(EMA(decay, debias=True, total=total, correction=0), BATCHES)
    weights = [(1 - decay) * decay ** (t - 1 - i) / (1 - decay**t) for i in range(t)]
    mean = weighted(weights, MEANS)
    squares = weighted(weights, [v + m.square() for v, m in zip(BIASED, MEANS, strict=True)])
    assert close(layer.running_mean, mean)
    assert close(layer.running_var, squares - mean.square() if total else weighted(weights, BIASED))


def test_debiased_first_batch_is_the_estimate():
    layer = fed(EMA(0.99, debias=True), BATCHES[:1])
    assert close(layer.running_mean, MEANS[0])
    assert close(layer.running_var, UNBIASED[0])


def test_debiased_schedule_keeps_the_product_of_its_decays():
    def decay(step):
        return step / (step + 3.0) if isinstance(step, int) else step.double() / (step + 3)

    layer = fed(EMA(decay, debias=True), BATCHES)
    decays = [decay(step) for step in range(1, len(BATCHES) + 1)]
    weights = []
    for i, d in enumerate(decays):
        later = torch.tensor(decays[i + 1 :], dtype=torch.float64).prod()
        weights.append((1 - d) * later)
    weights = [w / sum(weights) for w in weights]
    assert close(layer.running_mean, weighted(weights, MEANS))
    assert close(layer.running_var, weighted(weights, UNBIASED))


def test_momentum_schedule_is_an_ordinary_function_of_the_step():
    layer = fed(EMA(), BATCHES, momentum=lambda step: 1 / (1 + step.double()))
    mean = torch.zeros(3, dtype=torch.float64)
    for step, batch_mean in enumerate(MEANS, start=1):
        mean = mean + (batch_mean - mean) / (1 + step)
    assert close(layer.running_mean, mean)


def test_total_is_the_moving_average_of_both_raw_moments():
    layer = fed(EMA(total=True, correction=0), BATCHES, momentum=0.3)
    first, second = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for m, v in zip(MEANS, BIASED, strict=True):
        first, second = 0.7 * first + 0.3 * m, 0.7 * second + 0.3 * (v + m.square())
    assert close(layer.running_mean, first)
    assert close(layer.running_var, second - first.square())


@pytest.mark.parametrize("correction", [0, 1])
def test_sigma_averages_the_standard_deviation(correction):
    layer = fed(EMA(sigma=True, correction=correction), BATCHES, momentum=0.2, eps=1e-3)
    sigma = torch.full((3,), 1 + 1e-3, dtype=torch.float64).sqrt()
    for var in UNBIASED if correction else BIASED:
        sigma = 0.8 * sigma + 0.2 * (var + 1e-3).sqrt()
    assert close(layer.running_var, sigma.square() - 1e-3)


@pytest.mark.parametrize("power", [1.0, 0.6])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_diminishing_gain_follows_its_formula(power, scale):
    layer = fed(Diminishing(power=power, scale=scale), BATCHES)
    mean = torch.zeros(3, dtype=torch.float64)
    for step, batch_mean in enumerate(MEANS, start=1):
        mean = mean + min(1, scale / step**power) * (batch_mean - mean)
    assert close(layer.running_mean, mean)


def test_diminishing_with_one_over_m_is_cumulative():
    diminishing, cumulative = fed(Diminishing(), BATCHES), fed(Cumulative(), BATCHES)
    assert close(diminishing.running_mean, cumulative.running_mean)
    assert close(diminishing.running_var, cumulative.running_var)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_window_is_the_mean_over_the_last_batches(size):
    for t in range(1, len(RAGGED) + 1):
        last = RAGGED[max(0, t - size) : t]
        layer = fed(Window(size), RAGGED[:t])
        assert close(layer.running_mean, torch.stack([x.mean(0) for x in last]).mean(0))
        assert close(layer.running_var, torch.stack([x.var(0, correction=1) for x in last]).mean(0))


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_window_with_total_is_exact_on_the_last_batches(size, correction):
    for t in range(1, len(RAGGED) + 1):
        last = torch.cat(RAGGED[max(0, t - size) : t])
        layer = fed(Window(size, total=True, correction=correction), RAGGED[:t])
        assert close(layer.running_mean, last.mean(0))
        assert close(layer.running_var, last.var(0, correction=correction))


def test_window_of_trained_statistics_lets_them_leave_batch_by_batch():
    stock = torch.nn.BatchNorm1d(3, momentum=1.0, dtype=torch.float64)
    stock(BATCHES[6])
    layer = batchnorm.convert(stock, estimator=Window(3))
    layer(BATCHES[0])
    assert close(layer.running_mean, (2 * MEANS[6] + MEANS[0]) / 3)
    layer(BATCHES[1])
    layer(BATCHES[2])
    assert close(layer.running_mean, (MEANS[0] + MEANS[1] + MEANS[2]) / 3)


def test_standing_statistics_are_the_mean_over_passes_and_reproduce_a_single_one():
    """BigGAN: k passes give the mean over passes; one pass gives back the training output."""
    once = fed(Cumulative(correction=0), BATCHES[:1])
    assert close(once.eval()(BATCHES[0]), batch_norm(BATCHES[0]))
    several = fed(Cumulative(correction=0), BATCHES)
    assert close(several.running_var, torch.stack(BIASED).mean(0))


def test_flipping_weights_leave_a_mixture_in_the_average_and_not_in_what_is_estimated_anew():
    """Quantization-aware training: a weight that flips between two grid points each step."""
    x = randn(16, 1)
    flipped = [x * weight for weight in (1.0, 2.0) * 40]
    layer = fed(EMA(), flipped, momentum=0.1)
    present = flipped[-1].var(0, correction=1)
    mixture = x.var(0, correction=1) * (0.1 * 4 + 0.09 * 1) / 0.19
    assert close(layer.running_var, mixture, 1e-3)
    assert (layer.running_var - present).abs() > 0.3 * present
    update_bn([flipped[-1]] * 3, layer)
    assert close(layer.running_var, present)


@pytest.mark.parametrize("estimator", [EMA(), EMA(debias=True), Cumulative(), Pooled(), Window(3)], ids=repr)
def test_a_dead_channel_has_variance_zero_and_a_finite_output(estimator):
    layer = fed(estimator, [torch.zeros(4, 2, dtype=torch.float64)] * 30, momentum=0.5)
    assert (layer.running_var < 1e-8).all()
    assert torch.equal(layer(torch.zeros(4, 2, dtype=torch.float64)), torch.zeros(4, 2, dtype=torch.float64))
    assert torch.equal(layer.eval()(torch.zeros(4, 2, dtype=torch.float64)), torch.zeros(4, 2, dtype=torch.float64))


def test_a_schedule_of_the_step_is_as_exact_as_a_float64_model():
    """The step comes in float64: 1 / step of an integer tensor would be a float32."""
    whole = fed(EMA(correction=0), BATCHES, momentum=lambda step: torch.clamp(1 / step, min=0.01))
    plain = fed(Cumulative(correction=0), BATCHES)
    assert close(whole.running_mean, plain.running_mean, 1e-14)
    assert close(whole.running_var, plain.running_var, 1e-14)
    debiased = fed(EMA(lambda step: 1 - 1 / (step + 2), debias=True), BATCHES)
    assert debiased.running_mean.dtype is torch.float64
