"""The drop-in: torch's calls work, and torch's defects do not."""

import inspect

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import batchnorm
from batchnorm.models import update_bn

DATA = torch.randn(90, 5, generator=torch.Generator().manual_seed(0)) * 3 + 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(6))


def test_the_signature_is_torch_s():
    mine, theirs = (inspect.signature(f).parameters for f in (update_bn, swa_utils.update_bn))
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


def test_on_equal_batches_of_one_layer_torch_and_this_agree_but_for_the_spread_between_batches():
    stock, ours = nn.Sequential(nn.BatchNorm1d(5)), nn.Sequential(nn.BatchNorm1d(5))
    swa_utils.update_bn(DATA.split(30), stock)
    update_bn(DATA.split(30), ours, "cpu")
    assert torch.allclose(stock[0].running_mean, ours[0].running_mean, rtol=1e-5)
    assert torch.allclose(stock[0].running_var, torch.stack([b.var(0) for b in DATA.split(30)]).mean(0), rtol=1e-5)
    assert torch.allclose(ours[0].running_var, DATA.var(0), rtol=1e-5)
    assert int(ours[0].num_batches_tracked) == int(stock[0].num_batches_tracked) == 3


def test_dropout_is_off_where_torch_leaves_it_on():
    stock, ours = network(), network()
    swa_utils.update_bn([(DATA, 0)], stock)
    update_bn([(DATA, 0)], ours)
    with torch.no_grad():
        h = ours[1].eval()(ours[0](DATA)).relu()
    assert torch.allclose(ours[4].running_var, h.var(0), rtol=1e-4)
    assert (stock[4].running_var / h.var(0)).min() > 1.7


@pytest.mark.parametrize("problem", ["empty", "dict", "frozen"])
def test_torch_s_failures(problem):
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if problem == "frozen":
        batchnorm.freeze(model[1])
        update_bn([DATA], model)
        assert torch.equal(model[1].running_mean, before["1.running_mean"])
        return
    with pytest.raises((batchnorm.BatchNormError, TypeError)):
        update_bn([] if problem == "empty" else [{"image": DATA}], model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert model[1].momentum == 0.1


def test_a_model_without_batch_norm_is_left_alone_as_torch_does():
    assert update_bn([DATA], nn.Linear(5, 2)) is None
