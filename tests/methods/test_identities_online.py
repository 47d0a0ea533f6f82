"""Online Normalization (Chiley et al. 2019): a stream of samples, whatever batches it comes in."""

import pytest
import torch

from batchnorm import BatchNorm1d, BatchNorm2d, kernels
from batchnorm.kernels.recurrence import recurrence
from batchnorm.layers import OnlineNorm
from tests.methods.plain import affine, axes, close, data, normalise, over, randn, run

STREAM, G = data(2, 12, 3, 4, 5), randn(12, 3, 4, 5, seed=7)


def layer_of(**options):
    return affine(BatchNorm2d(3, method="online", momentum=0.1, dtype=torch.float64, **options))


def sent(cuts):
    layer = layer_of(coupling=OnlineNorm(backward_decay=0.9))
    runs = [run(layer, x, g) for x, g in zip(STREAM.split(cuts), G.split(cuts), strict=True)]
    return layer, torch.cat([r.y for r in runs]), torch.cat([r.dx for r in runs])


@pytest.mark.parametrize("cuts", [[12], [3, 4, 5], [1, 11], [6, 6]], ids=str)
def test_the_cut_of_the_stream_changes_no_bit(cuts):
    alone, y, dx = sent([1] * 12)
    layer, y_cut, dx_cut = sent(cuts)
    assert torch.equal(y, y_cut)
    assert torch.equal(dx, dx_cut)
    for name in ("running_mean", "running_var", "backward_u", "backward_v"):
        assert torch.equal(getattr(alone, name), getattr(layer, name)), name


def test_state_is_the_exponentially_weighted_first_and_second_moment():
    layer, _, _ = sent([5, 7])
    first, second = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for sample in STREAM:
        first = 0.9 * first + 0.1 * sample.mean((1, 2))
        second = 0.9 * second + 0.1 * sample.square().mean((1, 2))
    assert close(layer.running_mean, first)
    assert close(layer.running_var, second - first.square())


def test_every_sample_meets_the_statistics_that_inference_would_use():
    layer = layer_of()
    for sample in STREAM.split(1):
        before = layer.eval()(sample)
        assert close(before, layer.train()(sample))


def test_controllers_take_mean_and_correlation_out_of_the_gradient():
    """A gradient with a mean and a correlation with y leaves without either after burn-in."""
    layer = BatchNorm1d(2, method="online", coupling=OnlineNorm(0.99, clamp=None), dtype=torch.float64)
    x = randn(6000, 2, seed=1)
    y = layer.eval()(x).detach()
    g = 2 + 1.5 * y + randn(6000, 2, seed=2)
    dx = run(layer.train(), x, g).dx[3000:]
    y = y[3000:]
    assert g.mean() > 1.9
    assert (g[3000:] * y).mean() > 1.4
    assert dx.mean(0).abs().max() < 0.02
    assert (dx * y).mean(0).abs().max() < 0.05


def test_clamp_holds_the_output_and_stops_the_gradient_beyond():
    layer = BatchNorm1d(1, method="online", dtype=torch.float64)
    got = run(layer, torch.tensor([[9.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    assert float(got.y) == 5.0
    assert float(got.dx) == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_layer_scaling_divides_a_sample_by_its_root_mean_square(training):
    layer = layer_of(coupling=OnlineNorm(clamp=None, layer_scaling=True)).train(training)
    y = layer(STREAM[:1])
    z = normalise(STREAM[:1], torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    z = z * over(layer.weight, z) + over(layer.bias, z)
    assert close(y, z / (z.square().mean() + 1e-5).sqrt())


def test_cumulative_momentum_averages_over_samples_not_over_the_last_ones():
    """update_bn sets momentum to None: the exact moments of the data set."""
    loader = list(STREAM.split([4, 4, 4]))
    layer = layer_of()
    torch.optim.swa_utils.update_bn(loader, layer)
    assert close(layer.running_mean, STREAM.mean(axes(STREAM)))
    assert close(layer.running_var, STREAM.var(axes(STREAM), correction=0))


@pytest.mark.parametrize("wide", [True, False])
def test_the_recurrence_is_a_loop_over_rows(wide):
    x, gain, start = randn(7, 5, seed=1), randn(7, 5 if wide else 1, seed=2), randn(5, seed=3)
    got = recurrence(x, gain, start)
    for t in range(7):
        start = gain[t] * start + x[t]
        assert close(got[t], start)


def test_the_cut_changes_no_bit_in_torch_operations_either():
    kernels.use("reference")
    try:
        whole, alone = sent([12]), sent([1] * 12)
    finally:
        kernels.use()
    assert torch.equal(whole[1], alone[1])
    assert torch.equal(whole[2], alone[2])


def test_a_sample_that_is_not_finite_changes_neither_statistics_nor_controllers():
    bad = STREAM.clone()
    bad[3, 1, 0, 0] = torch.nan
    layer = layer_of(coupling=OnlineNorm(backward_decay=0.9, clamp=None))
    run(layer, bad, G)
    twin = layer_of(coupling=OnlineNorm(backward_decay=0.9, clamp=None))
    rest = [t for t in range(12) if t != 3]
    run(twin, STREAM[rest], G[rest])
    assert torch.equal(layer.running_mean, twin.running_mean)
    assert torch.equal(layer.running_var, twin.running_var)
    assert torch.isfinite(layer.backward_u).all()
    assert torch.isfinite(layer.backward_v).all()
