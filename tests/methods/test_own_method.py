"""Choices that a user writes: numbers and vectors, from which everything else follows, natively and in torch."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d, BatchNormError, kernels
from batchnorm.kernels import native
from batchnorm.layers import (
    EMA,
    BatchCoupling,
    Coupling,
    Estimator,
    Ghost,
    Move,
    Numbers,
    Policy,
    Pooled,
    SecondMoment,
    Vectors,
)
from batchnorm.layers.step import Native

DOUBLE = torch.float64


@dataclass(frozen=True)
class Halfway(Coupling):
    """Normalise with halfway moments of the batch and of the population."""

    share: float = 0.5

    def plan(self, state, now):
        w = self.share
        return Numbers(mean=w, share=w, spread=1 - w), Vectors(pm=state.mean, rest=(1 - w) * state.var)


@dataclass(frozen=True)
class TwoSpeeds(Estimator):
    """The variance follows more slowly than the mean."""

    momentum = 0.2
    slower: float = 4.0

    def move(self, state, now):
        a = now.momentum
        return Move(gain=a, q=1 - a / self.slower, p=a / self.slower)


@dataclass(frozen=True)
class Interpolated(Coupling):
    """TTN: a learned share of the batch per channel, the rest from the source.

    Source: Lim et al., "TTN: A Domain-Shift Aware Batch Normalization in Test-Time Adaptation" (2023).
    """

    alpha: torch.Tensor = field(compare=False, repr=False)

    def plan(self, state, now):
        a = self.alpha
        return Numbers(mean=a, share=a, spread=1 - a), Vectors(pm=state.mean, rest=(1 - a) * state.var)


@dataclass(frozen=True)
class Floor(Coupling):
    """A variance that is never below a floor: a function of the moments that no numbers give."""

    least: float = 0.5
    reads_population = False

    def statistics(self, batch, state, now):
        return batch.mean, batch.var(0).clamp_min(self.least)


def randn(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def made(**choices):
    layer = BatchNorm1d(3, dtype=DOUBLE, **choices)
    state = {"weight": randn(3, seed=1), "bias": randn(3, seed=2), "running_mean": randn(3, seed=3)}
    layer.load_state_dict(state | {"running_var": torch.tensor([0.5, 1.0, 2.0])}, strict=False)
    return layer


def mixed(x, w, share, mean, var):
    """Mean and variance of the values that count, mixed as E[x] and E[x^2]."""
    n = w.sum()
    m = (w * x).sum((0, 2)) / n
    v = (w * (x - m[:, None]) ** 2).sum((0, 2)) / n
    return share * m + (1 - share) * mean, share * v + (1 - share) * var + share * (1 - share) * (m - mean) ** 2


def plainly(layer, x, w, groups, statistics):
    """The layer's output group by group, in plain torch."""
    parts = []
    for xs, ws in zip(x.tensor_split(groups), w.tensor_split(groups), strict=True):
        m, v = statistics(xs, ws)
        y = (xs - m[:, None]) / (v + layer.eps).sqrt()[:, None] * layer.weight[:, None] + layer.bias[:, None]
        parts.append(torch.where(ws != 0, y, 0))
    return torch.cat(parts)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_coupling_is_its_formula_forward_and_backward(backend, groups, masked):
    layer = made(coupling=Halfway(0.3), extent=Ghost(4) if groups == 3 else None, momentum=0.0)
    x, g, w = randn(12, 3, 5, seed=4), randn(12, 3, 5, seed=5), torch.ones(12, 1, 5, dtype=DOUBLE)
    given = {}
    if masked:
        given["mask"] = randn(12, 5, seed=6) > -0.5
        w = given["mask"][:, None].to(DOUBLE)
    leaves = [x.clone().requires_grad_(), layer.weight, layer.bias]
    kernels.use(backend)
    try:
        y = layer(leaves[0], **given)
        assert isinstance(y.grad_fn.call, Native) == (backend is None and native.built())
        got = (y, *torch.autograd.grad(y, leaves, g))
    finally:
        kernels.use()
    again = [x.clone().requires_grad_(), *leaves[1:]]
    y = plainly(layer, again[0], w, groups, lambda xs, ws: mixed(xs, ws, 0.3, layer.running_mean, layer.running_var))
    for one, other in zip(got, (y, *torch.autograd.grad(y, again, g)), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_an_estimator_is_its_formula():
    layer, x = made(estimator=TwoSpeeds()), randn(8, 3, seed=7)
    assert layer.momentum == 0.2
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    layer(x)
    assert torch.allclose(layer.running_mean, 0.8 * mean + 0.2 * x.mean(0))
    assert torch.allclose(layer.running_var, 0.95 * var + 0.05 * x.var(0))


@dataclass(frozen=True)
class Anchored(Estimator):
    """The average joins fixed anchors in the place of the running statistics."""

    at: tuple[str, ...] = ()

    def move(self, state, now):
        return Move(0.5, 0.25, 0.75, **{name: torch.full_like(state.mean, 10.0) for name in self.at})


@pytest.mark.parametrize("at", [(), ("from_mean",), ("from_var",), ("from_mean", "from_var")])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_an_estimator_joins_what_it_hands_in(at, backend):
    layer, x = made(estimator=Anchored(at)), randn(8, 3, seed=7)
    mean, var = (10.0 if f"from_{name}" in at else layer.stat(f"running_{name}").clone() for name in ("mean", "var"))
    kernels.use(backend)
    try:
        layer(x)
    finally:
        kernels.use()
    assert torch.allclose(layer.running_mean, 0.5 * mean + 0.5 * x.mean(0))
    assert torch.allclose(layer.running_var, 0.25 * var + 0.75 * x.var(0))


@pytest.mark.parametrize("choices", [{"coupling": Halfway(), "estimator": TwoSpeeds()}, {"coupling": Floor()}])
def test_everything_else_follows(choices):
    layer = made(**choices)
    x = randn(8, 3, seed=8)
    batchnorm.convert(nn.Sequential(nn.BatchNorm1d(3)), **choices)
    copied = copy.deepcopy(layer)
    with batchnorm.accumulate(layer):
        layer(x[:4]), layer(x[4:])
    assert int(layer.num_batches_tracked) == 1
    with batchnorm.bank(nn.Sequential(copied), "other"):
        copied(x)
    assert int(copied.num_batches_tracked) == 0
    first = made(**choices)
    state = {name: t.clone() for name, t in first.state_dict().items()}
    y = torch.utils.checkpoint.checkpoint(first, x.clone().requires_grad_(), use_reentrant=False)
    y.sum().backward()
    assert int(first.num_batches_tracked) == int(state["num_batches_tracked"]) + 1
    one = made(**choices)
    compiled = torch.compile(one, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), made(**choices)(x), rtol=1e-10)
    assert torch.allclose(one.running_var, first.running_var)
    model = nn.Sequential(one).eval()
    assert torch.allclose(batchnorm.to_stock(copy.deepcopy(model))(x), model(x))
    assert type(one.recipe.coupling).__name__ in repr(one)


def test_second_derivatives_and_transforms_follow():
    layer = made(coupling=Halfway(), momentum=0.0)
    x = randn(6, 3, seed=9).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: layer(t), (x,))
    with batchnorm.pause(nn.Sequential(layer)):
        assert torch.allclose(torch.func.vmap(layer)(x[None])[0], layer(x))


def test_a_learned_share_of_2023_reaches_its_parameter():
    alpha = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE, requires_grad=True)
    layer = made(coupling=Interpolated(alpha), momentum=0.0)
    x, g = randn(7, 3, 4, seed=10), randn(7, 3, 4, seed=11)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    got = (y, *torch.autograd.grad(y, (leaf, alpha), g))
    again = x.clone().requires_grad_()
    ones = torch.ones(7, 1, 4, dtype=DOUBLE)
    y = plainly(layer, again, ones, 1, lambda xs, ws: mixed(xs, ws, alpha, mean, var))
    for one, other in zip(got, (y, *torch.autograd.grad(y, (again, alpha), g)), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)
    assert torch.equal(layer.running_mean, mean)


@pytest.mark.parametrize("given", [{}, {"mask": torch.arange(24).reshape(8, 3) % 5 != 0}])
def test_statistics_that_no_numbers_give_take_the_passes_and_say_so(given):
    layer = made(coupling=Floor(0.9), momentum=0.0)
    x, g = randn(8, 3, 3, seed=12) * torch.tensor([[0.1], [1.0], [2.0]]), randn(8, 3, 3, seed=13)
    leaf = x.clone().requires_grad_()
    y = layer(leaf, **given)
    (got,) = torch.autograd.grad(y, leaf, g)
    w = given["mask"][:, None].to(DOUBLE) if given else torch.ones(8, 1, 3, dtype=DOUBLE)

    def floored(xs, ws):
        m, v = mixed(xs, ws, 1.0, 0.0, 0.0)
        return m, v.clamp_min(0.9)

    again = x.clone().requires_grad_()
    expected = plainly(layer, again, w, 1, floored)
    assert torch.allclose(y, expected)
    assert torch.allclose(got, torch.autograd.grad(expected, again, g)[0], rtol=1e-10, atol=1e-12)
    said = batchnorm.backends(nn.Sequential(layer), x)["0"]
    assert said.endswith("its statistics are a function of the moments that no numbers give")


def test_backends_say_what_runs_each_layer_and_change_nothing():
    model = nn.Sequential(
        BatchNorm1d(3), BatchNorm1d(3, coupling=Halfway()), BatchNorm1d(3, method="online"), nn.BatchNorm1d(3)
    )
    before = copy.deepcopy(model.state_dict())
    told = batchnorm.backends(model, torch.randn(8, 3))
    assert list(told) == ["0", "1", "2"]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not model[0]._forward_pre_hooks
    if native.built():
        assert told["0"] == told["1"] == "native: one call forward and one back"
    assert "an activation clamp follows" in told["2"]
    assert batchnorm.backends(model.eval())["0"].startswith("torch's batch norm kernel")
    with pytest.raises(BatchNormError, match="model must be"):
        batchnorm.backends(3)


def test_what_takes_the_number_of_values_is_asked_again_once_it_is_known():
    @dataclass(frozen=True)
    class ByCount(Coupling):
        def plan(self, state, now):
            share = now.n / (now.n + 4)
            return Numbers(share, share), Vectors(pm=state.mean, rest=(1 - share) * state.var)

    x, mask = randn(8, 3, seed=14), torch.arange(8) % 4 != 0
    one, two = made(coupling=ByCount(), momentum=0.0), made(coupling=ByCount(), momentum=0.0)
    whole = two(x[mask])
    assert torch.allclose(one(x, mask)[mask], whole)
    pooled = made(coupling=ByCount(), estimator=Pooled(), extent=Ghost(3), policy=Policy())
    assert torch.isfinite(pooled(x)).all()
    assert isinstance(EMA(), Estimator)


def test_weights_export_and_diagnosis_follow():
    torch.manual_seed(0)
    x = torch.randn(16, 3, dtype=DOUBLE) * 2 + 1
    weights = torch.rand(16, dtype=DOUBLE)
    layer = BatchNorm1d(3, coupling=Halfway(), dtype=DOUBLE)
    y = layer(x, weights=weights)
    n = weights.sum()
    mean = (weights[:, None] * x).sum(0) / n
    second = (weights[:, None] * (x - mean).square()).sum(0) / n
    var = 0.5 * second + 0.5 + 0.25 * mean.square()
    assert torch.allclose(y, (x - mean / 2) / (var + layer.eps).sqrt(), atol=1e-12)

    model = nn.Sequential(layer, nn.Linear(3, 2, dtype=DOUBLE)).eval()
    graph = torch.export.export(model, (x,)).module()
    assert torch.allclose(graph(x), model(x))
    batches = (torch.randn(512, 3, dtype=DOUBLE) * 2 + 1).split(64)
    found = batchnorm.diagnose(model, batches, progress=False).findings
    assert found[0].code in ("BN104", "BN108")  # one step from 0 and 1


class Half:
    """A plan beside the class that it is mixed into."""

    def plan(self, state, now):
        return Numbers(0.5, 0.5), Vectors(state.mean, rest=0.5 * state.var)


@pytest.mark.parametrize("parent", [Coupling, BatchCoupling, SecondMoment])
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_parent_says_of_its_plan_does_not_hold_for_a_childs(parent, masked):
    choice = dataclass(frozen=True)(type("Own", (Half, parent), {}))()
    x = randn(8, 3, seed=15) + 5
    layer = made(coupling=choice, momentum=0.0)
    y = layer(x, mask=torch.ones(8, dtype=torch.bool)) if masked else layer(x)
    if parent is not SecondMoment:  # which takes its moments about zero
        mean = 0.5 * x.mean(0) + 0.5 * layer.running_mean
        var = 0.5 * x.var(0, correction=0) + 0.5 * layer.running_var
        assert torch.allclose(y, (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias)
    assert not choice.is_plain
    assert choice.reads_population


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_finish_of_its_own_is_not_dropped(backend):
    @dataclass(frozen=True)
    class Halved(Coupling):
        def plan(self, state, now):
            return Numbers(), Vectors()

        def finish(self, y, weight=None):
            return y / 2

    layer, plain, x = made(coupling=Halved(), momentum=0.0), made(momentum=0.0), randn(8, 3, seed=16)
    kernels.use(backend)
    try:
        assert torch.allclose(layer(x), plain(x) / 2)
        assert torch.allclose(layer.eval()(x), plain.eval()(x) / 2)
    finally:
        kernels.use()
    with pytest.raises(BatchNormError, match="its own finish"):
        batchnorm.to_stock(nn.Sequential(layer))


def test_an_average_with_a_gain_of_its_own_goes_by_that():
    @dataclass(frozen=True)
    class Slower(EMA):
        def gain(self, state, now):
            return 0.5 * now.momentum / now.step

    layer, x = made(estimator=Slower(decay=0.8)), randn(8, 3, seed=17)
    mean = layer.running_mean.clone()
    layer(x), layer(x)
    expected = mean.lerp(x.mean(0), 0.1).lerp(x.mean(0), 0.05)
    assert torch.allclose(layer.running_mean, expected)
    with pytest.raises(BatchNormError, match="plain moving average"):
        made(estimator=Slower(), extent=Ghost(2, "sequential"))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (1, 3)])
@pytest.mark.parametrize("correction", [0, 0.5, 1, 2])
def test_a_moves_numbers_may_come_in_any_shape_of_one_group(shape, correction):
    @dataclass(frozen=True)
    class Moves(Estimator):
        def move(self, state, now):
            a = torch.full(shape, 0.25, dtype=DOUBLE) if shape else 0.25
            return Move(a, 1 - a, a, correction=correction)

    layer, x = made(estimator=Moves()), randn(8, 3, seed=18)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    layer(x)
    assert torch.allclose(layer.running_mean, 0.75 * mean + 0.25 * x.mean(0))
    assert torch.allclose(layer.running_var, 0.75 * var + 0.25 * x.var(0, correction=0) * 8 / (8 - correction))


def test_a_choice_that_reads_no_population_serves_a_layer_without_statistics():
    x = randn(64, 3, seed=19) * 0.1
    floored = BatchNorm1d(3, coupling=Floor(0.5), track_running_stats=False, dtype=DOUBLE)(x)
    assert torch.allclose(floored, (x - x.mean(0)) / (0.5 + 1e-5) ** 0.5)
    other = BatchNorm1d(3, coupling=Halfway(), track_running_stats=False, dtype=DOUBLE)(x)
    assert torch.allclose(other, BatchNorm1d(3, dtype=DOUBLE)(x))
