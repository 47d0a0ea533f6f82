"""Every verb leaves a model as it was: parameters, buffers, attributes, hooks and flags of all modules."""

import copy
import itertools
import random
from collections import deque

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models import center_weights, parameter_groups, unadapt
from batchnorm.models.state import held, preserved

spectral_norm = nn.utils.parametrizations.spectral_norm


class Meter:
    """A plain object that counts what it meets."""

    def __init__(self):
        self.total, self.seen = 0, []

    def add(self, value):
        self.total += 1
        self.seen.append(value)


class Restless(nn.Module):
    """Changes a buffer, a parameter, a counter, queues, a hidden teacher, arrays and generators in every forward."""

    def __init__(self, width, only_in_training=False):
        super().__init__()
        self.only_in_training = only_in_training
        self.register_buffer("centre", torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.steps, self.last = 0, None
        self.queue, self.log, self.table, self.names = deque([1, 2], maxlen=3), [[0]], {"a": [1]}, {"x"}
        self.teacher = [nn.Linear(width, width)]
        self.meter = Meter()
        self.bank = torch.zeros(3)
        self.array = self.bank.numpy().copy()
        self.generator = torch.Generator().manual_seed(3)
        self.python_random = random.Random(5)

    def forward(self, x):
        if self.only_in_training and not self.training:
            return x
        with torch.no_grad():
            self.centre.add_(1)
            self.shift.data = self.shift.data * 0.5 + 1
            self.teacher[0].weight.data.mul_(0.9)
            self.bank[self.steps % 3] += 1
        self.steps += 1
        self.last = x
        self.queue.append(self.steps)
        self.log[0].append(self.steps)
        self.table["a"].append(2)
        self.table[self.steps] = 1
        self.names.add(self.steps)
        self.meter.add(self.steps)
        self.array += 1
        torch.rand(1, generator=self.generator)
        self.python_random.random()
        torch.rand(1)
        return x


def network(only_in_training=False):
    torch.manual_seed(0)
    rest = Restless(8, only_in_training)
    return nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(6, 8)),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        rest,
        spectral_norm(nn.Linear(8, 8)),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )


MAY_CHANGE = (nn.BatchNorm1d, nn.Identity, nn.ReLU)


def facts(model):
    """All that `Restless` and the rest hold, as values."""
    rest = next(m for m in model.modules() if isinstance(m, Restless))
    held = {
        "python": copy.deepcopy(
            (rest.steps, rest.last, rest.queue, rest.log, rest.table, rest.names, vars(rest.meter), rest.array.tolist())
        ),
        "bank": rest.bank.clone(),
        "teacher": rest.teacher[0].weight.detach().clone(),
        "generators": (rest.generator.get_state().tolist(), rest.python_random.getstate()),
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "flags": [m.training for m in model.modules() if not isinstance(m, nn.Identity | nn.ReLU)],
        "names": [
            sorted(vars(m)) for m in model.modules() if not isinstance(m, nn.BatchNorm1d | nn.Identity | nn.ReLU)
        ],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules() if not hasattr(m, "eps")],
        "grads": [p.grad for p in model.parameters()],
        "tensors": {
            name: value.detach().clone()
            for name, value in itertools.chain(model.named_parameters(), model.named_buffers())
            if not name.startswith(("1.", "5."))
        },
    }
    return held


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
BATCHES = list(X.split(16))


def accumulating(model):
    with batchnorm.accumulate(batchnorm.convert(model)):
        pass


def pausing(model):
    with batchnorm.pause(model):
        pass


def within_a_bank(model):
    with batchnorm.bank(batchnorm.convert(model), "other"):
        pass


def within_a_mask(model):
    with batchnorm.masked(batchnorm.convert(model), lengths=torch.tensor([1])):
        pass


VERBS = {
    "diagnose": lambda m: batchnorm.diagnose(m, BATCHES),
    "diagnose with a metric": lambda m: batchnorm.diagnose(
        m, BATCHES, metric=lambda output, batch: output.mean(), eval_loader=BATCHES
    ),
    "recalibrate": lambda m: batchnorm.recalibrate(m, BATCHES),
    "recalibrate by layers": lambda m: batchnorm.recalibrate(m, BATCHES, memory=1),
    "recalibrate by batches": lambda m: batchnorm.recalibrate(m, BATCHES, upstream="batch"),
    "update_bn": lambda m: batchnorm.update_bn(BATCHES, m),
    "adapt and undo": lambda m: unadapt(batchnorm.adapt(m, BATCHES).model),
    "adapt to a domain": lambda m: batchnorm.adapt(m, BATCHES, "domain").undo(),
    "fold": lambda m: batchnorm.fold(m, X[:4]),
    "convert": batchnorm.convert,
    "convert, looking back": lambda m: batchnorm.convert(m, coupling=batchnorm.layers.CrossIteration()),
    "convert and back": lambda m: batchnorm.to_stock(batchnorm.convert(m)),
    "fuse_activations": lambda m: batchnorm.fuse_activations(batchnorm.convert(m)),
    "freeze": batchnorm.freeze,
    "unfreeze": lambda m: batchnorm.unfreeze(batchnorm.freeze(m)),
    "pause": pausing,
    "accumulate": accumulating,
    "bank": within_a_bank,
    "masked": within_a_mask,
    "parameter_groups": lambda m: parameter_groups(m, 0.1),
    "batch_norm_layers": batchnorm.models.batch_norm_layers,
}


@pytest.mark.parametrize("only_in_training", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leaves_all_other_modules_as_they_were(verb, mode, only_in_training):
    model = network(only_in_training).train(mode == "train")
    before = facts(model)
    VERBS[verb](model)
    after = facts(model)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_diagnose_does_not_move_the_output_of_a_network_with_spectral_norm():
    torch.manual_seed(0)
    net = nn.Sequential(spectral_norm(nn.Linear(8, 16)), nn.BatchNorm1d(16), nn.ReLU(), spectral_norm(nn.Linear(16, 4)))
    net.eval()
    x = torch.randn(32, 8)
    before, state = net(x), copy.deepcopy(net.state_dict())
    batchnorm.diagnose(net, [torch.randn(32, 8) for _ in range(6)])
    assert torch.equal(net(x), before)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_what_an_error_interrupts_is_put_back_too():
    model = network()
    before = facts(model)

    class Stop(BaseException):
        pass

    for verb in (batchnorm.recalibrate, batchnorm.diagnose, lambda m, data, **how: batchnorm.adapt(m, data, **how)):
        calls = itertools.count(1)

        def forward(net, batch, calls=calls):
            if next(calls) == 3:
                raise Stop
            net(batch)

        with pytest.raises(Stop):
            verb(model, BATCHES, forward_fn=forward)
        assert [key for key, value in facts(model).items() if not same(before[key], value)] == []


def test_tensors_that_did_not_change_are_not_written():
    model = network(only_in_training=True)
    versions = [p._version for p in model.parameters()]
    x = torch.randn(4, 6, requires_grad=True)
    loss = model(x).sum()
    after = [p._version for p in model.parameters()]
    with held(model):
        model(X)
    assert [p._version for p in model.parameters()] == after
    loss.backward()
    assert len(versions) == len(after)


def test_what_is_left_out_keeps_its_values_unless_something_raises():
    model = nn.BatchNorm1d(2)
    with preserved(model, but=[model.running_mean]):
        model.running_mean.fill_(3)
        model.running_var.fill_(3)
    assert model.running_mean.tolist() == [3, 3]
    assert model.running_var.tolist() == [1, 1]
    with pytest.raises(ZeroDivisionError), preserved(model, but=[model.running_mean]):
        model.running_mean.fill_(1 // int(model.running_mean.fill_(4).sum() - 8))
    assert model.running_mean.tolist() == [3, 3]


def test_replaced_parts_come_back_as_the_same_objects():
    model = network()
    weight, linear, hooks = model[7].weight, model[7], model[7]._forward_hooks
    with preserved(model):
        handle = linear.register_forward_hook(lambda *a: None)
        linear.weight = nn.Parameter(torch.zeros(1, 1))
        model[7] = nn.Identity()
        model[2].__class__ = nn.Sigmoid
        model.extra = 3
        weight.requires_grad_(False)
        weight.grad = torch.ones_like(weight)
    assert model[7] is linear
    assert linear.weight is weight
    assert linear._forward_hooks is hooks
    assert not hooks
    assert type(model[2]) is nn.ReLU
    assert not hasattr(model, "extra")
    assert weight.requires_grad
    assert weight.grad is None
    handle.remove()


def test_center_weights_traces_without_running_the_counters():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Restless(8))
    before = facts(model)
    center_weights(model)
    after = facts(model)
    assert same(before["python"], after["python"])
    assert same(before["teacher"], after["teacher"])
