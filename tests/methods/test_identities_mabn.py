"""MABN, PowerNorm and Unified Normalization where their windows and warm-ups make them something simpler."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm2d
from batchnorm.layers import MABN, PowerNorm, UnifiedNorm
from tests.methods.plain import affine, axes, close, data, over, randn, run, run_plain, same

SHAPE = (4, 3, 4, 5)
ALONE = {
    "mabn": MABN(window=1, correct_after=10**6),
    "power": PowerNorm(warmup=10**6),
    "unified-warming": UnifiedNorm(window=4, warmup=10**6),
}


def layer_of(coupling, **options):
    method = {MABN: "mabn", PowerNorm: "power", UnifiedNorm: "unified"}[type(coupling)]
    return affine(BatchNorm2d(3, method=method, coupling=coupling, dtype=torch.float64, **options))


def by_root_mean_square(x):
    return x / over((x.square().mean(axes(x)) + 1e-5).sqrt(), x)


@pytest.mark.parametrize("coupling", ALONE.values(), ids=ALONE)
def test_without_window_it_is_division_by_the_root_mean_square(coupling):
    """MABN with window 1, PowerNorm and Unified Normalization in their warm-up: one function, one gradient."""
    layer = layer_of(coupling)
    for step in range(3):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step + 7)
        assert same(run(layer, x, g), run_plain(by_root_mean_square, x, g, layer.weight, layer.bias))


def test_window_one_on_centred_data_is_batch_norm():
    layer, plain = layer_of(ALONE["mabn"]), affine(BatchNorm2d(3, dtype=torch.float64))
    x = data(1, *SHAPE)
    x = x - over(x.mean(axes(x)), x)
    assert close(layer(x), plain(x))


@pytest.mark.parametrize("method", ["mabn", "power", "unified"])
def test_a_constant_stream_needs_no_correction_and_trains_as_it_infers(method):
    short = {
        "mabn": MABN(window=3, warmup=0, correct_after=0),
        "power": PowerNorm(warmup=0),
        "unified": UnifiedNorm(window=3, warmup=0),
    }
    layer = layer_of(short[method], momentum=0.5)
    x = data(1, *SHAPE)
    for _ in range(60):
        y = layer(x)
    assert close(y, layer.eval()(x), 1e-9)
    assert close(layer.running_var, x.square().mean(axes(x)), 1e-9)
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))


def test_correction_makes_training_the_inference_within_its_limit():
    """r = sqrt(window / running): x / sqrt(window) * r is x / sqrt(running)."""
    layer = layer_of(MABN(window=2, r_max=1e9, warmup=0, correct_after=0))
    for step in range(4):
        frozen = copy.deepcopy(layer).eval()
        x = data(step, *SHAPE)
        assert close(layer(x), frozen(x))
    limited = layer_of(MABN(window=1, r_max=5.0, warmup=0, correct_after=0))
    x = 100 * data(1, *SHAPE)
    expected = 5 * by_root_mean_square(x) * over(limited.weight, x) + over(limited.bias, x)
    assert close(limited(x), expected, 1e-9)


def test_geometric_mean_is_never_above_the_arithmetic_one():
    """So Unified Normalization never divides by more than the window's mean, and its outlier gap is never negative."""
    unified = BatchNorm2d(3, method="unified", coupling=UnifiedNorm(window=3, warmup=0), dtype=torch.float64)
    mabn = BatchNorm2d(3, method="mabn", coupling=MABN(3, warmup=0, correct_after=10**6), dtype=torch.float64)
    for step in range(5):
        x = data(step, *SHAPE)
        geometric, arithmetic = unified(x), mabn(x)
        assert (geometric.abs() >= arithmetic.abs() - 1e-12).all()
    assert (geometric.abs() > 1.01 * arithmetic.abs()).all()


def test_an_outlier_is_normalised_alone_and_enters_as_the_running_moment():
    coupling = UnifiedNorm(window=3, warmup=0, filter_outliers=True)
    layer = BatchNorm2d(3, method="unified", coupling=coupling, dtype=torch.float64)
    for step in range(6):
        layer(randn(*SHAPE, seed=step))
    running = layer.running_var.clone()
    burst = 100 * randn(*SHAPE, seed=9)
    y = layer(burst)
    assert close(y, by_root_mean_square(burst))
    slot = (int(layer.forward_window_seen) - 1) % 3
    assert close(layer.forward_window[slot], running)
    unfiltered = BatchNorm2d(3, method="unified", coupling=UnifiedNorm(3, warmup=0), dtype=torch.float64)
    for step in range(6):
        unfiltered(randn(*SHAPE, seed=step))
    assert not close(unfiltered(burst), by_root_mean_square(burst), 1e-2)


def test_centred_weights_take_the_mean_off_any_constant_input():
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    net = nn.Sequential(conv, nn.BatchNorm2d(3, dtype=torch.float64))
    net = batchnorm.models.center_weights(batchnorm.convert(net, "mabn"))
    y = net[0](torch.full((2, 2, 6, 6), 7.0, dtype=torch.float64))
    assert close(y, torch.zeros_like(y))
    x = randn(2, 2, 6, 6)
    assert close(net[0](x), net[0](x + 1000), 1e-9)


def test_inference_divides_by_the_running_second_moment():
    for method in ("mabn", "power", "unified"):
        layer = affine(BatchNorm2d(3, method=method, momentum=0.3, dtype=torch.float64))
        second = torch.ones(3, dtype=torch.float64)
        for step in range(4):
            x = data(step, *SHAPE)
            layer(x)
            second = 0.7 * second + 0.3 * x.square().mean(axes(x))
        assert close(layer.running_var, second)
        expected = x / over((second + 1e-5).sqrt(), x) * over(layer.weight, x) + over(layer.bias, x)
        assert close(layer.eval()(x), expected)
