"""Models made of other models' parameters: averages, teachers, targets, clients."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import batchnorm
import batchnorm.interop
from gallery.common import X, Y, accuracy, batches, metric, network, norms, train
from tests.pains.table import outcome, pain


@pain(
    4,
    "The EMA or mean-teacher copy evaluates badly",
    state="repaired",
    peer="an average of parameters() keeps the untrained statistics; AveragedModel copies those of the last weights",
    here="batchnorm.recalibrate(teacher, loader)",
    thread="https://github.com/pytorch/ignite/issues/2590",
    page="findings.md#bn101",
    without=("batchnorm.recalibrate", "batchnorm.diagnose"),
)
def test_pain_04_mean_teacher():
    report, before, after = outcome("mean_teacher")
    assert report.findings
    assert report.findings[0].code == "BN101"
    assert before < after - 0.2
    assert after > 0.95
    # torch's own average: buffers are copied from the model, weights are not its.
    model = train(network(), 60, lr=0.05)
    teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    train(model, 150, lr=0.05, each=teacher.update_parameters)
    assert torch.equal(norms(teacher)[0].running_mean, norms(model)[0].running_mean)
    assert not torch.equal(norms(teacher)[0].weight, norms(model)[0].weight)
    drift = {name: row.drift for name, row in batchnorm.diagnose(teacher, batches(), metric).layers.items()}
    assert max(drift.values()) > 0.1
    batchnorm.recalibrate(teacher, batches())
    report = batchnorm.diagnose(teacher, batches(), metric)
    assert max(row.drift for row in report.layers.values()) < 0.01


@pain(
    6,
    "update_bn does not fit: dict batches, dropout, frozen layers, batches of unequal size",
    state="prevented",
    peer="a dict batch raises and leaves reset statistics; 64 and 2 samples weigh alike; a frozen layer is overwritten",
    here="batchnorm.recalibrate(model, loader)",
    thread="https://github.com/pytorch/pytorch/issues/49082",
    page="recalibrate.md",
    without="batchnorm.recalibrate",
)
def test_pain_06_update_bn_does_not_fit():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.frozen = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.frozen(self.norm(x))

    x = torch.cat([torch.randn(64, 2), torch.randn(2, 2) + 10])
    model = ByName()
    for layer in (model.norm, model.frozen):
        layer.running_mean.fill_(3.0)
    theirs, ours = copy.deepcopy(model), copy.deepcopy(model)
    with pytest.raises(AttributeError, match="dict"):
        update_bn([{"x": x}], theirs)
    assert (theirs.norm.running_mean == 0).all()
    assert theirs.norm.momentum is None
    theirs = copy.deepcopy(model).train()
    theirs.frozen.eval()
    update_bn(x.split(64), theirs)
    assert (theirs.norm.running_mean - x.mean(0)).min() > 4
    assert (theirs.frozen.running_mean != 3).all()
    assert theirs.frozen.training

    batchnorm.freeze(ours.frozen)
    batchnorm.recalibrate(ours, [{"x": part} for part in x.split(64)])
    assert torch.allclose(ours.norm.running_mean, x.mean(0), atol=1e-6)
    assert torch.allclose(ours.norm.running_var, x.var(0), rtol=1e-5)
    assert (ours.frozen.running_mean == 3).all()
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(batchnorm.BatchNormError, match=r"batch 1 \(a dict of other"):
        batchnorm.recalibrate(ours, [{"x": x}, {"other": x}])
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    report, was, now = outcome("measured_with_dropout_on")
    assert report.findings[0].code == "BN120"
    assert was < now - 0.05


def two_clients():
    a, b = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    for net, mean, steps in ((a, 0.0, 3), (b, 6.0, 8)):
        net[1].running_mean.fill_(mean)
        net[1].running_var.fill_(1.0)
        net[1].num_batches_tracked.fill_(steps)
    return a, b


@pain(
    20,
    "Federated averaging iterates over parameters(): statistics stay local (FedBN), or one client's are kept",
    state="prevented",
    peer="the server keeps mean 0, variance 1; averaging the buffers too loses the variance between clients: 1 for 10",
    here="server = batchnorm.interop.average(states, counts)",
    thread="https://github.com/TsingZ0/PFLlib/issues/260",
    page="federated.md",
    without="batchnorm.interop.average",
)
def test_pain_20_federated_averaging():
    report, before, after = outcome("federated_average")
    assert report.findings[0].code == "BN101"
    assert before < after - 0.05
    states = [client.state_dict() for client in two_clients()]
    naive = (states[0]["1.running_var"] + states[1]["1.running_var"]) / 2
    assert (naive == 1).all()
    server = batchnorm.interop.average(states, [300, 300])
    assert (server["1.running_mean"] == 3).all()
    assert (server["1.running_var"] == 10).all()  # 1 within, 9 between
    assert sorted(batchnorm.interop.average(states, [300, 300], batch_norm="local")) == ["0.bias", "0.weight"]


@pain(
    21,
    "result type Float can't be cast to Long, or a wrong counter, when state dicts are averaged",
    state="prevented",
    peer="dividing num_batches_tracked raises; in float64 it runs and leaves 5.5 batches",
    here="batchnorm.interop.average(states, counts)",
    thread="https://github.com/ebagdasa/backdoor_federated_learning/issues/5",
    page="federated.md",
    without=("batchnorm.interop.average", "gallery.files.inspect_checkpoint"),
)
def test_pain_21_the_counter_is_averaged():
    states = [client.state_dict() for client in two_clients()]
    total = {name: value.clone() for name, value in states[0].items()}
    total["1.running_mean"] /= 2
    with pytest.raises(RuntimeError, match="can't be cast"):
        total["1.num_batches_tracked"] /= 2
    assert (states[0]["1.num_batches_tracked"].double() + states[1]["1.num_batches_tracked"].double()) / 2 == 5.5
    counter = batchnorm.interop.average(states, [1, 1])["1.num_batches_tracked"]
    assert counter.dtype == torch.long
    assert counter == 8
    two_clients()[0].load_state_dict(batchnorm.interop.average(states, [1, 1]))
    report, before, after = outcome("averaged_counter")
    assert report.findings
    assert report.findings[0].code == "BN212"
    assert before < after - 0.05


@pain(
    29,
    "Reinforcement learning: the target network has stale statistics; acting in train mode",
    state="prevented",
    peer="Polyak averaging over parameters() leaves the target's statistics at their start",
    here="target.load_state_dict(batchnorm.interop.average([target.state_dict(), online.state_dict()], [0.95, 0.05]))",
    thread="https://github.com/DLR-RM/stable-baselines3/issues/996",
    page="federated.md",
    without=("gallery.files.inspect_checkpoint", "batchnorm.models.mode"),
    fails_with=ValueError,
)
def test_pain_29_target_network():
    online = train(network(), 20)
    by_parameters, by_state = copy.deepcopy(online), copy.deepcopy(online)
    kept = norms(by_parameters)[0].running_mean.clone()

    def follow(model):
        with torch.no_grad():
            for a, b in zip(by_parameters.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 0.05)
        by_state.load_state_dict(batchnorm.interop.average([by_state.state_dict(), model.state_dict()], [0.95, 0.05]))

    train(online, 200, x=X * 2 + 1, y=Y, each=follow)
    assert torch.equal(norms(by_parameters)[0].running_mean, kept)
    assert accuracy(by_state, X * 2 + 1, Y) > accuracy(by_parameters, X * 2 + 1, Y) + 0.05
    # One observation at a time, batch norm in eval and the rest as it is.
    online.train()
    with batchnorm.models.mode(online, train=False):
        action = online(X[:1])
    assert torch.equal(action, online.eval()(X[:1]))
    report, before, after = outcome("polyak_target")
    assert report.findings
    assert report.findings[0].code == "BN222"
    assert before < after - 0.05
