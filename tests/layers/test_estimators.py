"""Closed forms of each estimator over 1000 steps, in float64."""

import pytest
import torch

import batchnorm
from batchnorm.layers import EMA, Cumulative, Now, Pooled, Window

STEPS = 1000


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, 6, 3, dtype=torch.float64, generator=generator) * 2 + 5


def run(batches, estimator):
    layer = batchnorm.BatchNorm1d(3, estimator=estimator, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    return layer


def weights(decay, debias):
    w = (1 - decay) * decay ** torch.arange(STEPS - 1, -1, -1, dtype=torch.float64)
    return w / (1 - decay**STEPS) if debias else w


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("debias", [False, True])
def test_ema(batches, decay, debias):
    layer = run(batches, EMA(decay=decay, debias=debias))
    w = weights(decay, debias)
    start = 0.0 if debias else decay**STEPS
    mean = (w[:, None] * batches.mean(1)).sum(0)
    var = (w[:, None] * batches.var(1)).sum(0) + start
    assert torch.allclose(layer.running_mean, mean, rtol=1e-12, atol=1e-12)
    assert torch.allclose(layer.running_var, var, rtol=1e-12, atol=1e-12)


def test_cumulative(batches):
    layer = run(batches, Cumulative())
    assert torch.allclose(layer.running_mean, batches.mean((0, 1)), rtol=1e-12)
    assert torch.allclose(layer.running_var, batches.var(1).mean(0), rtol=1e-12)


def test_pooled_with_ragged_batches(batches):
    values = batches.reshape(-1, 3)
    layer = batchnorm.BatchNorm1d(3, estimator=Pooled(), dtype=torch.float64)
    sizes = [2 + 7 * (i % 3) for i in range(600)]
    used = 0
    for size in sizes:
        layer(values[used : used + size])
        used += size
    assert torch.allclose(layer.running_mean, values[:used].mean(0), rtol=1e-12)
    assert torch.allclose(layer.running_var, values[:used].var(0), rtol=1e-12)
    assert float(layer.pooled_count) == used


def test_momentum_is_read_at_every_call_and_zero_pauses(batches):
    for estimator in (EMA(), EMA(debias=True), Cumulative(), Pooled()):
        layer = run(batches[:5], estimator)
        before = layer.running_mean.clone()
        layer.momentum = 0.0
        layer(batches[6])
        assert torch.equal(layer.running_mean, before)
    layer.recipe = batchnorm.BatchNorm1d(3).recipe
    layer.momentum = 1.0
    layer(batches[7])
    assert torch.allclose(layer.running_mean, batches[7].mean(0), rtol=1e-12)


def test_a_debiased_average_is_right_after_one_batch_and_loads_into_stock(batches):
    layer = run(batches[:1], EMA(decay=0.99, debias=True))
    assert torch.allclose(layer.running_mean, batches[0].mean(0), rtol=1e-12)
    stock = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    stock.load_state_dict(layer.state_dict(), strict=True)
    assert torch.allclose(stock.running_var, batches[0].var(0), rtol=1e-12)


def test_pooled_takes_a_stock_state_strictly():
    layer = batchnorm.BatchNorm1d(3, estimator=Pooled())
    layer.load_state_dict(torch.nn.BatchNorm1d(3).state_dict(), strict=True)
    assert float(layer.pooled_count) == 0


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("seen", [0, 2, 4, 5])
def test_what_is_pushed_takes_the_place_of_the_oldest(seen, tensor):
    layer = batchnorm.BatchNorm1d(2, estimator=Window(3), dtype=torch.float64)
    layer.window_mean.copy_(torch.arange(6.0).reshape(3, 2))
    layer.window_seen.fill_(seen)
    expected = layer.window_mean.clone()
    expected[seen % 3] = torch.tensor([10.0, 11.0], dtype=torch.float64)
    now = Now(torch.ones((), dtype=torch.float64) if tensor else 1.0, 0.1, 1e-5)
    layer._write_memory(layer._state(torch.float64).pushed("window_seen", now, {"window_mean": expected[seen % 3]}))
    assert torch.equal(layer.window_mean, expected)
    assert layer.window_seen.item() == seen + 1
