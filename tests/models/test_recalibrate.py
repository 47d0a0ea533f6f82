import copy

import pytest
import torch
from torch import nn

import batchnorm

DATA = torch.randn(103, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 + 7


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4, momentum=0.0))


def state(model):
    return copy.deepcopy(model.state_dict())


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_first_layer_is_the_data_set_and_later_ones_pool_batch_normalised_inputs():
    model = network().train()
    result = batchnorm.recalibrate(model, DATA.split(50))
    wide = DATA.double()
    assert torch.allclose(model[0].running_mean.double(), wide.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(model[0].running_var.double(), wide.var((0, 2, 3)), rtol=1e-6)
    received = torch.cat(
        [
            model[1](nn.functional.batch_norm(b, None, None, model[0].weight, model[0].bias, True))
            for b in DATA.split(50)
        ]
    ).double()
    # dropout is off, momentum 0 no obstacle
    assert torch.allclose(model[3].running_mean.double(), received.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(model[3].running_var.double(), received.var((0, 2, 3)), rtol=1e-5)
    assert (result.samples, result.batches) == (103, 3)
    assert result.layers["0"].count == 103 * 25
    assert model.training
    assert model[3].momentum == 0.0
    assert int(model[0].num_batches_tracked) == 3


def test_shift_and_standard_error_are_in_stored_std_units():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4000, 2, generator=generator) * 3 + 6
    layer = nn.BatchNorm1d(2, eps=1e-9)
    layer.running_var.fill_(9.0)
    result = batchnorm.recalibrate(layer, data.split(500))
    row = result.layers[""]
    assert row.mean_shift == pytest.approx(2.0, rel=0.05)
    assert row.standard_error == pytest.approx(1 / 4000**0.5, rel=0.05)
    assert "4000 samples" in str(result)


def test_standard_error_counts_samples_not_pixels():
    per_sample = torch.randn(400, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    layer = nn.BatchNorm2d(1, eps=1e-9)
    result = batchnorm.recalibrate(layer, per_sample.expand(400, 1, 8, 8).split(100))
    assert result.layers[""].standard_error == pytest.approx(1 / 20, rel=0.1)


def test_within_variance_is_the_count_weighted_mean_of_unbiased_batch_variances():
    data = torch.cat([torch.randn(60, 1) - 5, torch.randn(20, 1) + 5])
    layer = nn.BatchNorm1d(1)
    batchnorm.recalibrate(layer, data.split(60), variance="within")
    expected = (60 * data[:60].var() + 20 * data[60:].var()) / 80
    assert float(layer.running_var) == pytest.approx(float(expected), rel=1e-6)


def test_undo_and_frozen_and_unreached_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.held, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.held(self.used(self.used(x)))

    model = Net()
    model.idle.running_mean.fill_(3.0)
    batchnorm.freeze(model.held)
    before = state(model)
    result = batchnorm.recalibrate(model, DATA.split(64))
    assert result.unreached == ("idle",)
    assert result.frozen == ("held",)
    assert result.layers["used"].count == 2 * 103 * 25  # both uses are pooled
    after = state(model)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("used"))
    result.undo()
    assert same(before, state(model))


@pytest.mark.parametrize("kind", ["tuple", "dict", "forward_fn"])
def test_batches_of_any_kind(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, image, scale=1.0):
            return self.bn(image * scale)

    batches = {
        "tuple": [(b, 0) for b in DATA.split(50)],
        "dict": [{"image": b, "scale": 1.0} for b in DATA.split(50)],
        "forward_fn": [("x", b) for b in DATA.split(50)],
    }[kind]
    forward_fn = (lambda m, batch: m(batch[1])) if kind == "forward_fn" else None
    model = Net()
    result = batchnorm.recalibrate(model, batches, forward_fn=forward_fn)
    assert torch.allclose(model.bn.running_mean, DATA.mean((0, 2, 3)), atol=1e-5)
    assert result.samples == 103


@pytest.mark.parametrize("problem", ["empty", "nan", "raises", "interrupt", "one value", "no layer"])
def test_bad_input_leaves_the_model_exactly_as_it_was(problem):
    model = network().train()
    model[3].eval()
    before = state(model)

    def batches():
        yield DATA[:50]
        if problem == "raises":
            raise OSError("disk")
        if problem == "interrupt":
            raise KeyboardInterrupt
        if problem == "nan":
            yield torch.full_like(DATA[:50], torch.nan)
        if problem == "one value":
            yield DATA[:1, :, :3, :3]

    expected = {"raises": OSError, "interrupt": KeyboardInterrupt, "one value": ValueError}
    target = nn.Linear(2, 2) if problem == "no layer" else model
    loader = [] if problem in ("empty", "no layer") else batches()
    with pytest.raises(expected.get(problem, batchnorm.BatchNormError)):
        batchnorm.recalibrate(target, loader)
    assert same(before, state(model))
    assert model.training
    assert not model[3].training
    assert model[3].track_running_stats
    assert not model[0]._forward_pre_hooks


def test_torch_update_bn_gets_ragged_batches_wrong_where_this_is_exact():
    data = torch.cat([torch.zeros(64, 1), torch.full((2, 1), 10.0)]) + torch.randn(66, 1)
    stock, ours = nn.Sequential(nn.BatchNorm1d(1)), nn.Sequential(nn.BatchNorm1d(1))
    torch.optim.swa_utils.update_bn(data.split(64), stock)
    batchnorm.recalibrate(ours, data.split(64))
    assert abs(float(stock[0].running_mean - data.mean())) > 4
    assert float(ours[0].running_mean) == pytest.approx(float(data.mean()), abs=1e-6)


def test_the_coupling_does_not_matter_and_a_pause_around_it_holds():
    stock, population = network(), batchnorm.convert(network(), "population")
    batchnorm.recalibrate(stock, DATA.split(50))
    with batchnorm.pause(population):
        batchnorm.recalibrate(population, DATA.split(50))
        assert population[0].paused
    assert torch.allclose(stock[3].running_var, population[3].running_var, rtol=1e-5)
    assert not population[0].paused
