"""EfficientNet-Lite0: all of its 49 batch norm layers go, and the logits stay."""

import copy

import torch

import batchnorm
from batchnorm.models import fold
from tests.real.test_efficientnet import images, lite, network, weights

__all__ = ["images", "lite", "network", "weights"]


def test_every_layer_is_absorbed(network, images):
    before = copy.deepcopy(network.state_dict())
    result = fold(network, images, timing=0)
    assert (len(result.layers), result.left) == (49, {})
    assert batchnorm.models.batch_norm_layers(result.model) == {}
    with torch.no_grad():
        stock, now, exact = network(images), result.model(images), copy.deepcopy(network).double()(images.double())
    assert (now - stock).abs().max() < 1e-4
    # The folded network is no further from the truth than the one it came from.
    assert (now - exact).abs().max() <= 2 * (stock - exact).abs().max()
    assert result.exact_error < 1e-12
    assert torch.equal(now.argmax(1), stock.argmax(1))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_converted_and_frozen_layers_are_absorbed_too(network, images):
    ours = batchnorm.freeze(batchnorm.convert(copy.deepcopy(network), "debiased"))
    result = fold(ours, images[:1], timing=0)
    assert result.left == {}
    with torch.no_grad():
        assert (result.model(images) - network(images)).abs().max() < 1e-4
