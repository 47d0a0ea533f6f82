"""Adapt: every mode against a float64 reference, in every mode of the model, undone to the bit; and how it decides."""

import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.models import adapt, fold, freeze, unadapt
from batchnorm.models.adapting.decide import LARGEST_PRIOR
from batchnorm.models.adapting.evidence import Samples, order_of, shift_of

RANKS = {
    2: (nn.BatchNorm1d, batchnorm.BatchNorm1d, (6, 3)),
    3: (nn.BatchNorm1d, batchnorm.BatchNorm1d, (6, 3, 5)),
    4: (nn.BatchNorm2d, batchnorm.BatchNorm2d, (6, 3, 4, 5)),
    5: (nn.BatchNorm3d, batchnorm.BatchNorm3d, (6, 3, 2, 4, 5)),
}


def layer_of(kind, seed=0):
    layer = kind(3).double().eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.running_mean.copy_(torch.randn(3, generator=g))
        layer.running_var.copy_(torch.rand(3, generator=g) + 0.5)
        layer.weight.copy_(torch.randn(3, generator=g))
        layer.bias.copy_(torch.randn(3, generator=g))
    return layer


def moments(x):
    """Mean and biased variance over all but the channels, `(C,)`."""
    rows = x.movedim(1, 0).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


def normalised(layer, x, mean, var):
    shape = (-1, x.shape[1], *[1] * (x.dim() - 2))
    scale = layer.weight / (var + layer.eps).sqrt()
    return (x - mean.view(shape)) * scale.view(shape) + layer.bias.view(1, *shape[1:])


def mixed(w, here, stored):
    """Of two distributions with weights w and 1 - w: through E[x^2], so that the means' distance counts."""
    (m, v), (ms, vs) = here, stored
    mean = w * m + (1 - w) * ms
    return mean, w * (v + m**2) + (1 - w) * (vs + ms**2) - mean**2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_every_mode_is_its_formula_and_leaves_no_trace(rank, ours, training):
    layer = layer_of(RANKS[rank][ours])
    model = nn.Sequential(layer, nn.Dropout(0.0))
    x = torch.randn(RANKS[rank][2], dtype=torch.float64) * 2 + 3
    stored = layer.running_mean.clone(), layer.running_var.clone()
    here, n = moments(x), len(x)
    before, objects = copy.deepcopy(model.state_dict()), dict(layer._buffers)
    expected = {
        "stored": stored,
        "batch": here,
        "prior": mixed(n / (n + 16), here, stored),
        "alpha": mixed(0.5, here, stored),
        "running": mixed(n / (n + 64), here, stored),
        "domain": here,
    }
    for mode, statistics in expected.items():
        result = adapt(model, [x], mode)
        model.train(training)
        torch.testing.assert_close(model(x), normalised(layer, x, *statistics), rtol=1e-9, atol=1e-9)
        assert layer.running_mean is objects["running_mean"]
        assert model.state_dict().keys() == before.keys()
        result.undo()
    result = adapt(model, mode="example", weight=0.25)
    model.train(training)
    parts = [normalised(layer, one[None], *mixed(0.25, moments(one[None]), stored)) for one in x]
    torch.testing.assert_close(model(x), torch.cat(parts), rtol=1e-9, atol=1e-9)
    result.undo()
    assert type(layer) is RANKS[rank][ours]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert dict(layer._buffers).keys() == objects.keys()
    model.eval()
    torch.testing.assert_close(model(x), normalised(layer, x, *stored), rtol=1e-9, atol=1e-9)


def test_the_variance_of_a_mixture_holds_the_distance_of_the_means():
    """Half of N(0, 1) and half of N(4, 1) has variance 5; averaging variances, as others do, gives 1."""
    layer = nn.BatchNorm1d(1).double().eval()
    adapt(layer, mode="alpha")
    x = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x), (x - 2) / (5 + layer.eps) ** 0.5)


def test_limits_of_the_prior():
    layer, x = layer_of(nn.BatchNorm1d), torch.randn(6, 3, dtype=torch.float64) + 2
    stored = layer(x)
    for prior, reference in ((0.0, normalised(layer, x, *moments(x))), (1e15, stored)):
        result = adapt(layer, mode="prior", prior=prior)
        torch.testing.assert_close(layer(x), reference)
        result.undo()


def test_running_follows_the_stream_and_forgets():
    layer = layer_of(nn.BatchNorm2d)
    stored = layer.running_mean.clone(), layer.running_var.clone()
    adapt(layer, mode="running", memory=10)
    stream = [torch.randn(5, 3, 4, 4, dtype=torch.float64) + k for k in range(4)]
    state = stored
    for x in stream:
        y = layer(x)
        state = mixed(5 / 15, moments(x), state)
        torch.testing.assert_close(y, normalised(layer, x, *state))
    assert torch.equal(layer.running_mean, stored[0])
    layer(torch.full((5, 3, 4, 4), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(layer.stat("running_mean"), state[0])  # a batch that is not finite does not count


def test_gradients_flow_through_the_statistics_as_tent_needs():
    layer, x = layer_of(nn.BatchNorm2d), torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    adapt(layer, mode="alpha", weight=0.3)
    assert torch.autograd.gradcheck(lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
                                    (x, layer.weight, layer.bias))  # fmt: skip
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert x.grad is not None


class Net(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def trained(net, x):
    """Statistics of x in every layer, which settle one layer a pass."""
    for _ in range(3):
        batchnorm.recalibrate(net, [x])
    return net.eval()


def source(n=256, seed=1, ordered=False):
    """Images of four kinds that differ among themselves, in no order or kind after kind."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(4, (n,), generator=g)
    labels = labels.sort().values if ordered else labels
    return kinds[labels] + torch.randn(n, 3, 8, 8, generator=g) * (0.3 + torch.rand(n, 1, 1, 1, generator=g))


def test_domain_is_exact_whatever_the_batches_are():
    net, x = trained(Net(), source()).double(), (source(64, 2) * 2 + 1).double()
    expected = copy.deepcopy(net).requires_grad_(False)
    for layer in (m for m in expected.modules() if isinstance(m, nn.BatchNorm2d)):
        caught = []
        handle = layer.register_forward_pre_hook(lambda m, args, caught=caught: caught.append(args[0]))
        expected(x)
        handle.remove()
        mean, var = moments(caught[0])
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    adapt(net, x.split(7), "domain")
    # Fixed from now on: no output depends on its batch, whichever way the stream is cut.
    for size in (1, 64):
        torch.testing.assert_close(torch.cat([net(b) for b in x.split(size)]), expected(x), rtol=1e-9, atol=1e-9)


def test_domain_settles_deep_networks_as_recalibration_does():
    """Statistics measured under those of the pass before, all layers at once, are wrong until the last pass."""
    torch.manual_seed(0)
    layers = [m for _ in range(10) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    net, x = nn.Sequential(*layers).double(), source(64, 1).double()
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer(net[: layers.index(layer)](x))
    net.eval()
    dark = x * 0.2 - 3
    result = adapt(net, dark.split(8), "domain")
    adapted = net(dark).detach()
    result.undo()
    recalibrated = copy.deepcopy(net)
    batchnorm.recalibrate(recalibrated, dark.split(8), exact=True)
    # The variances that recalibration stores are unbiased, of 64 images of 64 values.
    assert (adapted - recalibrated(dark)).norm() < 1e-3 * adapted.norm()
    assert (net(dark) - adapted).norm() > 0.5 * adapted.norm()
    x = dark
    adapt(net, dark.split(8), "domain")
    for layer in net:
        if isinstance(layer, nn.BatchNorm2d):
            mean, var = moments(x)
            y = (x - mean.reshape(1, -1, 1, 1)) / (var.reshape(1, -1, 1, 1) + layer.eps).sqrt()
            assert (layer(x) - y).abs().max() < 1e-6
        x = layer(x).detach()


def test_early_is_domain_in_the_first_third_of_the_layers_as_executed():
    net, x = trained(Net(), source()).double(), (source(64, 2) * 2 + 1).double()
    first, second, _ = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    stored = second.running_mean.clone(), second.running_var.clone()
    result = adapt(net, x.split(7), "early")
    assert [row.weight for row in result.layers.values()] == [1.0, 0.0, 0.0]
    z = net.body[0](x)
    torch.testing.assert_close(first(z), normalised(first, z, *moments(z)), rtol=1e-9, atol=1e-9)
    z = net.body[2:4](first(z))
    torch.testing.assert_close(second(z), normalised(second, z, *stored), rtol=1e-9, atol=1e-9)
    result.undo()


def test_auto_reads_the_data_four_times_and_not_more():
    """Stored, settled in one forward, early and domain; a stream that is hardly shifted is read once."""
    calls = []

    class Counting(Net):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    net = trained(Counting(), source())
    for x, passes in ((source(128, 3) * 0.2 - 3, 4), (source(128, 3), 1)):
        calls.clear()
        adapt(net, x.split(16)).undo()
        # The settling pass measures its first batch once more.
        assert passes * 128 <= sum(calls) <= passes * 128 + 16


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_auto_keeps_what_serves(norm):
    net = trained(Net(norm), source())
    clean, dark = source(128, 3), source(128, 3) * 0.2 - 3
    kept = adapt(net, clean.split(16))
    assert kept.choice.mode == "stored"
    assert kept.choice.prior > LARGEST_PRIOR
    kept.undo()
    unsure = adapt(net, dark.split(16))  # a head that was never trained tells no classes
    assert unsure.choice.mode == "stored"
    assert unsure.choice.predictions["domain"].clusters < 0.1
    unsure.undo()
    shifted = adapt(net, dark.split(16), outputs="values")
    assert shifted.choice.mode == "early"
    assert [row.weight for row in shifted.layers.values()] == [1.0, 0.0, 0.0]
    adapted = net(dark)
    shifted.undo()
    # The outputs come back towards what the clean images give.
    assert (adapted - net(clean)).norm() < 0.75 * (net(dark) - net(clean)).norm()
    few = adapt(net, dark[:16].split(8))
    assert (few.choice.mode, few.choice.samples) == ("stored", 16)
    assert "too few" in few.choice.reason
    few.undo()


def test_auto_refuses_a_sorted_stream_unless_it_is_to_be_pooled():
    net, dark = trained(Net(), source()), source(128, 3, ordered=True) * 0.2 - 3
    result = adapt(net, dark.split(16))
    assert result.choice.mode == "stored"
    assert "sorted or drifts" in result.choice.reason
    assert result.choice.order.correlation > 0.3
    result.undo()
    pooled = adapt(net, dark.split(16), if_sorted="pool", outputs="values")
    assert pooled.choice.mode == "early"
    pooled.undo()


def test_effective_count_of_repeated_samples():
    """Each of 200 samples 5 times in a row is worth about 200, not 1000."""
    z = torch.randn(200, 8, dtype=torch.float64)
    repeated = Samples(z.repeat_interleave(5, 0), torch.zeros(1000, 8, dtype=torch.float64))
    assert 150 < repeated.effective_count < 260
    alone = Samples(torch.randn(1000, 8, dtype=torch.float64), torch.zeros(1000, 8, dtype=torch.float64))
    assert alone.effective_count > 850
    torch.testing.assert_close(repeated.correlations[1], torch.tensor(0.8, dtype=torch.float64), rtol=0, atol=0.05)
    # Against the definition, term by term.
    z = (repeated.mean - repeated.mean.mean(0)) / repeated.mean.std(0, correction=0)
    for lag in (1, 7):
        expected = (z[lag:] * z[:-lag]).sum(1).mean() / z.square().sum(1).mean()
        torch.testing.assert_close(repeated.correlations[lag], expected)


def test_the_order_test_is_calibrated():
    """Independent samples come out below p = 0.05 about one time in twenty, and never below 0.001 here."""
    p = torch.tensor([order_of([Samples(torch.randn(64, 5).double(), torch.zeros(64, 5))]).p_value for _ in range(300)])
    assert 0.02 < float((p < 0.05).double().mean()) < 0.09
    assert float(p.min()) > 2e-4
    trend = torch.linspace(0, 3, 64)[:, None].double() + torch.randn(64, 5).double()
    assert order_of([Samples(trend, torch.zeros(64, 5))]).p_value < 1e-4


def test_shift_is_free_of_chance_and_prior_is_spread_over_shift():
    mean, var = torch.zeros(400).double(), torch.ones(400).double()
    none = shift_of(Samples(torch.randn(50, 400).double(), torch.zeros(50, 400).double()), mean, var, 0.0)
    assert none.shift < 0.003  # the raw difference would be 1 / 50 + 1 / 100
    shifted = Samples(torch.randn(50, 400).double() + 0.5, torch.zeros(50, 400).double())
    found = shift_of(shifted, mean, var, 0.0)
    assert abs(found.shift - 0.25) < 0.02
    # One sample: the mean errs by 1, and the standard deviation by var((x - m)^2) / 4 = 0.5.
    assert abs(found.prior - 1.5 / 0.25) < 0.8


def test_frozen_layers_stay_and_are_listed():
    net = trained(Net(), source())
    freeze(net.body[1])
    result = adapt(net, mode="batch")
    assert result.frozen == ("body.1",)
    assert type(net.body[1]) is nn.BatchNorm2d
    assert "frozen: unchanged" in str(result)


def test_copies_pickles_and_checkpoints():
    net, x = trained(Net(), source()), source(64, 2) + 1
    result = adapt(net, x.split(16), "domain")
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x), y)
        unadapt(other)
        assert type(other.body[1]) is nn.BatchNorm2d
    fresh = Net()
    fresh.load_state_dict(net.state_dict())  # the source's, with no key more
    result.undo()
    torch.testing.assert_close(fresh.eval()(x), net(x))


def test_all_or_nothing_and_errors():
    net = trained(Net(), source())
    before, types = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]

    def interrupted():
        yield source(32, 2)
        raise KeyboardInterrupt

    class Breaks(Net):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 5:
                raise RuntimeError("full")
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        adapt(net, interrupted(), "domain")
    late = trained(Breaks(), source())
    late.calls = 3
    with pytest.raises(RuntimeError, match="full"):
        adapt(late.train(), source(64, 2).split(32), "domain")
    assert late.training
    assert type(late.body[1]) is nn.BatchNorm2d

    class Custom(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    for wrong, words in (
        (lambda: adapt(net, mode="best"), "mode must be 'auto'"),
        (lambda: adapt(net), "data must yield"),
        (lambda: adapt(net, [], "domain"), "data must yield"),
        (lambda: adapt(net, mode="batch", weight=0.2), "weight must be None"),
        (lambda: adapt(net, mode="alpha", weight=2.0), "weight must be"),
        (lambda: adapt(net, mode="prior", prior=-1), "prior must be"),
        (lambda: adapt(net, mode="running", memory=-1), "memory must be"),
        (lambda: adapt(net, [source(8)], max_batches=0), "max_batches must be"),
        (lambda: adapt(net, [source(8)], if_sorted="maybe"), "if_sorted must be"),
        (lambda: adapt(nn.Linear(2, 2), mode="batch"), "must contain a batch norm"),
        (lambda: adapt(freeze(Net()), mode="batch"), "not frozen"),
        (lambda: adapt(nn.Sequential(Custom(3)), mode="batch"), "own class would be lost"),
        (lambda: adapt(net, [source(32) * torch.nan], "domain"), "finite activations"),
    ):
        with pytest.raises(batchnorm.BatchNormError, match=words):
            wrong()
    adapt(net, mode="batch")
    with pytest.raises(batchnorm.BatchNormError, match="under adaptation already"):
        adapt(net, mode="prior")
    unadapt(net)
    assert [type(m) for m in net.modules()] == types
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_with_the_rest_of_the_package():
    net, x = trained(batchnorm.convert(Net(), "debiased"), source()), source(64, 2) + 1
    result = adapt(net, x.split(16), "domain")
    y = net(x)
    folded = fold(net, x, timing=0)  # fixed statistics fold; those of a batch do not
    assert folded.left == {}
    torch.testing.assert_close(folded.model(x), y, rtol=1e-4, atol=1e-4)
    result.undo()
    adapt(net, mode="batch")
    assert all("at hand" in reason for reason in fold(net, x, timing=0).left.values())
    unadapt(net)
    assert net.body[1].recipe == batchnorm.layers.recipe_for("debiased")


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("prior", "example", "domain")]


@pytest.mark.parametrize("mode", ["running", *SLOW])
def test_compiled_with_one_graph_gives_the_same(mode):
    net, x = layer_of(nn.BatchNorm2d), torch.randn(8, 3, 4, 4, dtype=torch.float64) + 1
    adapt(net, [x], mode)
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), eager(x), rtol=1e-9, atol=1e-9)


def test_half_precision_layers_keep_wide_statistics():
    layer = nn.BatchNorm2d(3).half().eval()
    result = adapt(layer, mode="domain", data=[torch.randn(64, 3, 4, 4).half() * 300 + 100])
    assert layer.stat("running_var").dtype == torch.float32
    assert 8e4 < float(layer.stat("running_var").max()) < 1e5  # past float16
    result.undo()
    assert layer.running_mean.dtype == torch.float16
