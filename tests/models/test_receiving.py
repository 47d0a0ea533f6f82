"""Layers whose own class turns or flattens its input before it hands it on: what is normalised is what is measured."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models.receiving import on_input


class Flattens(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class Turns(nn.BatchNorm1d):
    def forward(self, x):
        return nn.BatchNorm1d.forward(self, x.transpose(1, 2)).transpose(1, 2)


class SkipsEmpty(Flattens):
    def forward(self, x):
        return x if x.numel() == 0 else super().forward(x)


class Computes(nn.BatchNorm1d):
    """Hands nothing on: its input is what it normalises."""

    def forward(self, x):
        if self.training:
            return nn.functional.batch_norm(x, None, None, self.weight, self.bias, True)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), kind(8), nn.ReLU(), nn.Linear(8, 8), kind(8), nn.Linear(8, 2)).eval()


def nodes(count):
    """With as many nodes as channels a wrong axis would be no error."""
    generator = torch.Generator().manual_seed(count)
    return list((torch.randn(120, count, 3, generator=generator) * 2 + 1).split(12))


def exact(model, data):
    """What the first layer receives, over all data."""
    return model[0](torch.cat(data)).detach().double().reshape(-1, 8)


@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("upstream", ["population", "batch"])
@pytest.mark.parametrize("kind", [Flattens, Turns, SkipsEmpty])
def test_recalibration_takes_the_moments_of_what_is_normalised(kind, upstream, count):
    model, data = network(kind), nodes(count)
    batchnorm.recalibrate(model, data, upstream=upstream, progress=False)
    for layer, x in ((model[1], exact(model, data)), (model[4], model[:4](torch.cat(data)).detach().reshape(-1, 8))):
        if upstream == "batch" and layer is model[4]:
            continue  # what it receives in train mode depends on the batches
        torch.testing.assert_close(layer.running_mean, x.mean(0).float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.running_var, x.var(0).float(), rtol=1e-5, atol=1e-5)
    assert not any("_check_input_dim" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("kind", [Flattens, Turns, SkipsEmpty])
def test_the_diagnosis_finds_the_layer_that_is_off(kind):
    model, data = network(kind), nodes(8)
    batchnorm.recalibrate(model, data, progress=False)
    assert batchnorm.diagnose(model, data, progress=False).ok
    broken = copy.deepcopy(model)
    broken[1].running_mean.add_(3 * broken[1].running_var.sqrt())
    report = batchnorm.diagnose(broken, data, progress=False)
    assert {(f.code, f.layer) for f in report.findings} == {("BN104", "1")}
    assert abs(report.layers["1"].drift - 3) < 0.01


def test_a_class_that_computes_by_itself_is_seen_at_its_input():
    torch.manual_seed(0)
    model, data = nn.Sequential(Computes(3)).eval(), list((torch.randn(200, 3) * 2 + 5).split(50))
    batchnorm.recalibrate(model, data, progress=False)
    torch.testing.assert_close(model[0].running_mean, torch.cat(data).mean(0))


def test_hooks_come_in_order_and_leave_nothing():
    layer, seen = Flattens(4), []
    layer._check_input_dim = own = lambda x: seen.append(("own", tuple(x.shape)))
    handles = [on_input(layer, lambda *told, at=at: seen.append((at, tuple(told[1][0].shape)))) for at in (1, 2)]
    layer(torch.randn(3, 5, 4))
    assert seen == [("own", (15, 4)), (1, (15, 4)), (2, (15, 4))]
    for handle in handles:
        handle.remove()
    assert layer.__dict__["_check_input_dim"] is own
    plain = nn.BatchNorm1d(4)
    on_input(plain, lambda *told: None).remove()
    assert not plain._forward_pre_hooks


def test_the_diagnosis_with_a_metric_does_not_ask_such_a_class_for_torchs_forward():
    model, data = network(Flattens), nodes(5)
    batchnorm.recalibrate(model, data, progress=False)
    loader = [(x, model(x).argmax(-1)[:, 0]) for x in data]
    report = batchnorm.diagnose(
        model, loader, lambda y, batch: (y[:, 0].argmax(1) == batch[1]).float().mean(), progress=False
    )
    assert report.ok
    assert report.evidence.as_batch_norm is None


class OneBranch(nn.BatchNorm1d):
    """Hands on in train mode alone; small batches are left as they are."""

    def forward(self, x):
        if len(x) < 3:
            return x
        if self.training:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


@pytest.mark.parametrize("training", [False, True])
def test_a_class_that_hands_on_in_one_mode_is_seen_in_both(training):
    layer, seen = OneBranch(3).train(training), []
    handle = on_input(layer, lambda layer, args, kwargs: seen.append(args[0]))
    x = torch.randn(5, 3)
    layer(x), layer(x[:2]), layer(x=x)
    handle.remove()
    assert len(seen) == 2
    assert all(torch.equal(t, x) for t in seen)
    layer(x)
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
    assert "_check_input_dim" not in layer.__dict__


def test_recalibration_of_a_class_that_hands_on_in_train_mode_alone():
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(OneBranch(3), nn.Linear(3, 4), OneBranch(4)).eval(),
        list((torch.randn(200, 3) * 2 + 5).split(50)),
    )
    batchnorm.recalibrate(model, data, progress=False)
    torch.testing.assert_close(model[0].running_mean, torch.cat(data).mean(0))
    torch.testing.assert_close(model[2].running_var, model[:2](torch.cat(data)).detach().var(0))
