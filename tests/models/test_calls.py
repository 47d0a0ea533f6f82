"""One layer for each call of a layer that is called several times in a forward."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.models import batch_norm_layers, separate_calls


class Siamese(nn.Module):
    """Two branches through one trunk, and a layer behind both."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.last = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.last(self.trunk(x) - self.trunk(3 * x + 2))


def made():
    torch.manual_seed(0)
    return Siamese(), torch.randn(256, 4)


def test_each_call_has_the_statistics_of_its_own_inputs():
    model, data = made()
    alike = copy.deepcopy(model)
    batchnorm.recalibrate(separate_calls(model, data.split(64)), data.split(64))
    first, second = model.trunk[1].each
    alike.requires_grad_(False)
    inputs = alike.trunk[0](data), alike.trunk[0](3 * data + 2)
    for layer, x in zip((first, second), inputs, strict=True):
        torch.testing.assert_close(layer.running_mean, x.mean(0))
        torch.testing.assert_close(layer.running_var, x.var(0))
    a, b = (nn.functional.batch_norm(x, x.mean(0), x.var(0)).relu() for x in inputs)
    last = alike.last(a - b)
    torch.testing.assert_close(model.eval()(data), last, atol=5e-3, rtol=0)


def test_what_is_called_once_stays_and_what_is_shared_stays_shared():
    model, data = made()
    last, weight = model.last, model.trunk[1].weight
    assert separate_calls(model, data.split(64)) is model
    assert model.last is last
    assert [layer.weight is weight for layer in model.trunk[1].each] == [True, True]
    assert list(batch_norm_layers(model)) == ["trunk.1.each.0", "trunk.1.each.1", "last"]
    assert len(list(model.parameters())) == 2 + 2 + 2


def test_the_model_is_left_as_it_was_but_for_that():
    model, data = made()
    model.train()
    before = model.trunk[1].running_mean.clone()
    separate_calls(model, data.split(64))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(layer.running_mean, before) for layer in model.trunk[1].each)


def test_calls_are_counted_from_the_start_of_each_forward_and_in_copies():
    model, data = made()
    separate_calls(model, data.split(64))
    with torch.no_grad():
        model.trunk[1].each[0].running_mean += 1
    model.eval()
    first = model(data)
    torch.testing.assert_close(model(data), first, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(data), first, rtol=0, atol=0)
    assert (twin.trunk[1].count, model.trunk[1].count) == (2, 2)


def test_further_calls_use_the_last_layer():
    model, data = made()
    separate_calls(model, data.split(64))
    with torch.no_grad():
        model.trunk[1].each[1].running_mean += 1
    model.eval()(data)
    third = model.trunk[1](data)
    torch.testing.assert_close(third, model.trunk[1].each[1](data), rtol=0, atol=0)


def test_a_forward_fn_calls_the_model():
    model, data = made()
    separate_calls(model, [{"x": data}], forward_fn=lambda model, batch: model(batch["x"]))
    assert len(model.trunk[1].each) == 2


def test_a_model_without_several_calls_gets_no_hook():
    model = nn.Sequential(nn.BatchNorm1d(4))
    separate_calls(model, [torch.randn(8, 4)])
    assert type(model[0]) is nn.BatchNorm1d
    assert not model._forward_pre_hooks


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(BatchNormError, match="must contain a batch norm layer"):
        separate_calls(nn.Linear(2, 2), [torch.randn(8, 2)])
