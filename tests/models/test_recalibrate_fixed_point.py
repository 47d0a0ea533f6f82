"""upstream="population": what is stored equals what each layer receives at inference, whatever way leads there."""

import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models.recalibration import meeting

DATA = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1
ROUNDING = 2e-6  # float32 activations and statistics, in standard deviations


class Block(nn.Module):
    """Two ways to a sum, as in a residual network: the two batch norms of the branches do not follow each other."""

    def __init__(self, width, out):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.short, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.bn3(self.short(x))).relu()


def deep(blocks=4):
    torch.manual_seed(0)
    return nn.Sequential(*(Block(3 if i == 0 else 8, 8) for i in range(blocks)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@torch.no_grad()
def received(model, batches, forward=None):
    """Float64 mean and unbiased variance of what each layer receives in eval mode, from all values at once."""
    model.eval()
    seen, handles = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            seen[name] = []
            handles.append(layer.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0])))
    for batch in batches:
        model(batch) if forward is None else forward(model, batch)
    for handle in handles:
        handle.remove()
    values = {
        name: torch.cat([x.double().movedim(1, 0).flatten(1) for x in parts], 1)
        for name, parts in seen.items()
        if parts
    }
    return {name: (v.mean(1), v.var(1)) for name, v in values.items()}


def worst(model, batches):
    far = 0.0
    for name, (mean, var) in received(model, batches).items():
        layer = model.get_submodule(name)
        far = max(far, float(((layer.running_mean - mean) / var.sqrt()).abs().max()))
        far = max(far, float((layer.running_var / var - 1).abs().max()))
    return far


@pytest.mark.parametrize("size", [1, 5, 96])
@pytest.mark.parametrize("memory", [None, 1])
def test_every_layer_stores_what_it_receives_at_inference(size, memory):
    model = deep()
    result = batchnorm.recalibrate(model, DATA.split(size), memory=memory, exact=True)
    assert worst(model, DATA.split(size)) < ROUNDING
    assert max(result.residual.values()) < 1e-6
    assert result.converged
    assert result.passes == 1


def test_batch_upstream_leaves_a_residual_and_the_fixed_point_does_not_depend_on_the_batches():
    precise, whole, pieces = deep(), deep(), deep()
    batchnorm.recalibrate(precise, DATA.split(4), upstream="batch")
    batchnorm.recalibrate(whole, [DATA])
    batchnorm.recalibrate(pieces, DATA.split(7))
    assert worst(precise, [DATA]) > 0.02
    for (name, a), b in zip(whole.state_dict().items(), pieces.state_dict().values(), strict=True):
        if "running" in name:
            assert torch.allclose(a, b, atol=1e-6, rtol=1e-5), name


def test_sorted_data_matter_to_batch_upstream_and_not_to_the_fixed_point():
    data = DATA + 3 * torch.randn(96, 1, 1, 1)
    ordered = data[data.mean((1, 2, 3)).argsort()]
    a, b, c = deep(), deep(), deep()
    batchnorm.recalibrate(a, data.split(8))
    batchnorm.recalibrate(b, ordered.split(8))
    batchnorm.recalibrate(c, ordered.split(8), upstream="batch")
    assert torch.allclose(a[3].bn2.running_var, b[3].bn2.running_var, rtol=1e-5)
    assert worst(b, [data]) < ROUNDING
    assert worst(c, [data]) > 0.1


def test_both_ways_give_the_same_statistics_and_one_needs_one_forward():
    calls = []

    def counted(model, batch):
        calls.append(len(batch))
        return model(batch)

    together, apart = deep(), deep()
    batchnorm.recalibrate(together, DATA.split(16), forward_fn=counted)
    assert len(calls) == 6 + 1  # one more of the first batch, to see how much memory it takes
    calls.clear()
    batchnorm.recalibrate(apart, DATA.split(16), forward_fn=counted, memory=1, exact=True)
    assert len(calls) == 6 * (12 + 2) + 1  # a pass per layer, one that finds no more, one that measures the residual
    for (name, a), b in zip(together.state_dict().items(), apart.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-7), name


def test_the_data_may_be_read_again_instead_of_kept():
    class Loader:
        read = 0

        def __iter__(self):
            Loader.read += 1
            return iter(DATA.split(16))

    model, other = deep(1), deep(1)
    batchnorm.recalibrate(model, Loader(), memory=1, exact=True)
    assert Loader.read > 3
    batchnorm.recalibrate(
        other, iter(DATA.split(16)), memory=1, exact=True
    )  # a generator is kept, having no second time
    assert torch.equal(model[0].bn2.running_var, other[0].bn2.running_var)


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(3)])
def test_a_shuffling_loader_shuffles_alike_each_time_it_is_read(generator):
    def loader():
        data = torch.utils.data.TensorDataset(DATA)
        return torch.utils.data.DataLoader(data, 16, shuffle=True, generator=generator)

    model = deep(2)
    result = batchnorm.recalibrate(model, loader(), memory=1, max_samples=48, exact=True)
    # A third of the data: the residual would not vanish if each pass saw another third.
    assert result.samples == 48
    assert max(result.residual.values()) < 1e-6


def test_the_memory_of_a_batch_is_what_its_widest_layer_holds():
    """Three activations of 8 channels are alive at bn3 of a block: two of its own ways and its input."""
    from batchnorm.models.recalibration.forwards import Caller, Order, Visits
    from batchnorm.models.recalibration.memory import frontier
    from batchnorm.models.recalibration.targets import Targets

    model, visits, order = deep(3).eval(), Visits(), Order()
    targets = Targets.of(model, None, None).active
    with torch.no_grad(), visits.watching(targets):
        held = frontier(Caller(model), visits, DATA[:10], order).bytes
    one = 10 * 8 * 8 * 8 * 4
    assert 2 * one <= held <= 6 * one
    assert list(order.seen[0])[:3] == ["0.bn1", "0.bn2", "0.bn3"]
    assert not model[0]._forward_hooks


class Recurrent(nn.Module):
    """One layer used three times; a gain of 1 settles, one of 40 does not."""

    def __init__(self, gain):
        super().__init__()
        self.first, self.again, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        nn.init.orthogonal_(self.linear.weight, gain)

    def forward(self, x):
        h = self.first(x)
        for _ in range(3):
            h = self.again(torch.tanh(self.linear(h)) + x)
        return self.last(h)


@pytest.mark.parametrize("memory", [None, 1])
def test_a_layer_used_several_times_is_iterated_until_it_settles(memory):
    data = torch.randn(80, 4, generator=torch.Generator().manual_seed(2))
    model = Recurrent(0.7)
    result = batchnorm.recalibrate(model, data.split(16), memory=memory, exact=True)
    assert result.converged
    assert 2 < result.passes < 25
    assert max(result.residual.values()) < 1e-6
    assert worst(model, data.split(16)) < 5e-6
    assert result.layers["again"].count == 3 * 80


class Chaotic(nn.Module):
    """Used twice, and the second use feeds on the first so steeply that iteration swings."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(1, affine=False)

    def forward(self, x):
        h = self.bn(x)
        return self.bn(torch.sin(30 * h) * 10 * h)


def test_a_layer_that_does_not_settle_is_said_to_have_a_residual():
    data = torch.randn(64, 1, generator=torch.Generator().manual_seed(2)) * 3
    result = batchnorm.recalibrate(Chaotic(), data.split(16))
    assert not result.converged
    assert result.residual["bn"] > 1e-6
    assert "have not settled after 25 passes" in str(result)


class Branching(nn.Module):
    """Which layers a batch reaches, and in which order, depends on its values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.never = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.end = nn.BatchNorm1d(2)

    def forward(self, x):
        kind = int(x[0, 0])
        if kind == 0:
            return self.end(self.b(self.a(x)))
        if kind == 1:
            return self.end(self.a(self.b(x)))
        return self.b(x) if kind == 2 else x


@pytest.mark.parametrize("memory", [None, 1])
def test_control_flow_that_depends_on_the_data_does_not_wait_for_ever(memory):
    torch.manual_seed(0)
    batches = [torch.cat([torch.full((1, 2), float(k % 4)), torch.randn(9, 2) + k]) for k in range(12)]
    model = Branching()
    result = batchnorm.recalibrate(model, batches, memory=memory, exact=True)
    assert result.unreached == ("never",)
    assert result.layers["a"].count == 60
    assert result.layers["b"].count == 90
    assert result.layers["end"].count == 60
    # a and b each come before the other for some batches, so neither can be settled first.
    assert result.passes > 1
    assert result.converged == (max(result.residual.values()) < 2e-6)
    if result.converged:
        assert worst(model, batches) < 1e-5


def test_threads_inherit_what_torch_keeps_per_thread_and_all_end():
    states = []

    class Spy(nn.Module):
        def forward(self, x):
            states.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), x.dtype))
            return x

    model = nn.Sequential(nn.Linear(3, 4), Spy(), nn.BatchNorm1d(4))
    before = threading.active_count()
    batchnorm.recalibrate(model, torch.randn(40, 3).split(8), autocast=torch.bfloat16)
    assert set(states) == {(False, True, torch.bfloat16)}
    states.clear()
    with torch.autocast("cpu", torch.bfloat16):
        batchnorm.recalibrate(model, torch.randn(40, 3).split(8))
    assert set(states) == {(False, True, torch.bfloat16)}
    assert threading.active_count() == before


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_result_does_not_depend_on_how_many_batches_run_at_once(slots, monkeypatch):
    model, other = deep(), deep()
    run = meeting.Meeting.run

    def with_slots(self, batches):
        self.slots = slots
        return run(self, batches)

    batchnorm.recalibrate(other, DATA.split(8))
    monkeypatch.setattr(meeting.Meeting, "run", with_slots)
    batchnorm.recalibrate(model, DATA.split(8))
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_where_threads_cannot_be_started_the_data_pass_once_per_layer(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    model, other = deep(2), deep(2)
    batchnorm.recalibrate(other, DATA.split(16))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    result = batchnorm.recalibrate(model, DATA.split(16))
    assert max(result.residual.values()) < 1e-6
    assert torch.allclose(model[1].bn2.running_var, other[1].bn2.running_var, rtol=1e-6)


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_a_model_that_reaches_no_layer_is_left_as_it_was(upstream):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return x

    result = batchnorm.recalibrate(Idle(), DATA.split(8), upstream=upstream, until=0.1)
    assert result.layers == {}
    assert result.unreached == ("bn",)
    assert "never reached" in str(result)


def test_an_error_in_one_thread_ends_all_and_is_the_one_that_is_raised():
    class Failing(nn.Module):
        def forward(self, x):
            if float(x[0, 0]) == 3.0:
                raise ArithmeticError("the fourth batch")
            return x

    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    broken = nn.Sequential(Failing(), *model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count = threading.active_count()
    with pytest.raises(batchnorm.BatchNormError, match=r"batch 3 .*ArithmeticError.*the fourth batch"):
        batchnorm.recalibrate(broken, [torch.randn(8, 2).index_fill(0, torch.tensor(0), float(k)) for k in range(9)])
    assert threading.active_count() == count
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"memory": 1}, {"upstream": "batch"}])
def test_ctrl_c_while_threads_compute(options):
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Slow(), nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # A run in the background of a shell ignores the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    # Libraries used by other tests may keep threads of their own.
    count = threading.active_count()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        batchnorm.recalibrate(model, torch.randn(400, 3).split(4), **options)
    timer.join()
    signal.signal(signal.SIGINT, handler)
    assert threading.active_count() == count
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[3].training
    assert not model[1]._forward_pre_hooks


def test_layers_that_take_no_mean_off_store_the_second_moment_they_receive():
    model = nn.Sequential(
        nn.Linear(3, 4), batchnorm.BatchNorm1d(4, method="mabn"), nn.Linear(4, 4), batchnorm.BatchNorm1d(4)
    )
    x = torch.randn(90, 3) + 1
    batchnorm.recalibrate(model, x.split(30))
    with torch.no_grad():
        h = model[0](x).double()
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    # Its estimator stores the biased moment.
    assert torch.allclose(model[1].running_var.double(), h.square().mean(0), rtol=1e-5)
    mean, var = received(model, [x])["3"]
    assert torch.allclose(model[3].running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(model[3].running_var.double(), var, rtol=1e-5)
