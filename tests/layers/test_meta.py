"""Every method forward and backward on the meta device, where a tensor of the CPU that slips in raises."""

import pytest
import torch

import batchnorm

META = torch.device("meta")
GIVEN = {"masked": ("mask", torch.bool), "weighted": ("weights", torch.float32)}


def layer_of(method, **options):
    layer = batchnorm.BatchNorm1d(4, method=method, device=META, **options)
    if method == "cbn":
        layer.attach(torch.nn.Linear(3, 4, device=META))
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("method", [name for name in batchnorm.methods() if name != "cbn"])
def test_every_method_stays_on_the_device(method, activation, training):
    layer = layer_of(method, activation=activation).train(training)
    x = torch.randn(64, 4, 5, device=META, requires_grad=True)
    given = {}
    if method in GIVEN:
        name, dtype = GIVEN[method]
        given[name] = torch.ones(64, 5, dtype=dtype, device=META)
    y = layer(x, residual=torch.randn(64, 4, 5, device=META), **given)
    y.backward(torch.empty_like(y))
    assert y.is_meta
    assert x.grad.is_meta
    assert layer.weight.grad.is_meta
    assert all(buffer.is_meta for buffer in layer.buffers())


def test_cross_iteration_stays_on_the_device():
    linear = torch.nn.Linear(3, 4, device=META)
    layer = batchnorm.BatchNorm1d(4, method="cbn", device=META)
    layer.attach(linear)
    for _ in range(2):
        y = layer(linear(torch.randn(8, 3, device=META)))
        y.backward(torch.empty_like(y))
    assert linear.weight.grad.is_meta


@pytest.mark.parametrize("estimator", ["Pooled", "Window", "Cumulative", "Diminishing"])
def test_estimators_stay_on_the_device(estimator):
    chosen = getattr(batchnorm.layers, estimator)
    layer = batchnorm.BatchNorm1d(4, device=META, estimator=chosen(2) if estimator == "Window" else chosen())
    y = layer(torch.randn(8, 4, device=META, requires_grad=True))
    y.backward(torch.empty_like(y))
    assert all(buffer.is_meta for buffer in layer.buffers())


def test_a_tensor_of_the_cpu_is_refused():
    layer = batchnorm.BatchNorm1d(4, method="renorm", device=META)
    with pytest.raises(batchnorm.BatchNormError, match="must be on meta"):
        layer(torch.randn(8, 4))
