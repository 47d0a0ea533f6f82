import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.layers import MABN, Estimator, Move, Pooled, UnifiedNorm, Window

DATA = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.BatchNorm2d(4, momentum=0.3))


def test_round_trip_is_bitwise_and_keeps_objects():
    model = network()
    model(DATA)
    before = copy.deepcopy(model.state_dict())
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules = list(model)
    assert batchnorm.convert(model) is model
    assert list(model) == modules
    assert model[1] is model[3]
    assert model[4].momentum == 0.3
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert optimizer.param_groups[0]["params"][2] is model[1].weight
    assert batchnorm.to_stock(model) is model
    assert type(model[1]) is nn.BatchNorm2d
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert not any(name in model[1].__dict__ for name in ("recipe", "frozen", "_record"))


def test_root_hooks_and_flags_survive():
    layer = nn.BatchNorm1d(3).eval()
    calls = []
    layer.register_forward_hook(lambda *a: calls.append(1))
    assert batchnorm.convert(layer) is layer
    layer(torch.randn(4, 3))
    assert calls == [1]
    assert not layer.training


@pytest.mark.parametrize("method", ["batchnorm", "debiased", "cumulative", "pooled", "population"])
def test_every_method_goes_back_to_the_same_eval_output(method):
    model = batchnorm.convert(network(), method)
    for _ in range(3):
        model(DATA)
    expected = model.eval()(DATA)
    keys = network().state_dict().keys()
    batchnorm.to_stock(model)
    assert torch.equal(model(DATA), expected)
    assert model.state_dict().keys() == keys


def test_half_precision_goes_back_to_the_same_eval_output():
    model = batchnorm.convert(network().bfloat16())
    model(DATA.bfloat16())
    expected = model.eval()(DATA.bfloat16())
    assert torch.equal(batchnorm.to_stock(model)(DATA.bfloat16()), expected)


def test_trained_statistics_with_counter_zero_are_not_wiped():
    layer = nn.BatchNorm1d(2, momentum=0.01)
    with torch.no_grad():
        layer.running_mean.fill_(5.0)
    debiased = batchnorm.convert(copy.deepcopy(layer), "debiased")
    debiased(torch.zeros(8, 2))
    assert torch.allclose(debiased.running_mean, torch.tensor(5 * 0.99), atol=1e-5)
    with pytest.raises(batchnorm.BatchNormError, match="count must be given"):
        batchnorm.convert(layer, "cumulative")
    assert type(layer) is nn.BatchNorm1d
    batchnorm.convert(layer, "cumulative", count=9)
    layer(torch.zeros(8, 2))
    assert torch.allclose(layer.running_mean, torch.tensor(4.5))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"coupling": MABN(16, warmup=0)}, {"coupling": MABN(4, warmup=0)}),
        ({"coupling": MABN(9, warmup=0)}, {"coupling": UnifiedNorm(8, warmup=0)}),
        ({"coupling": UnifiedNorm(4, warmup=0)}, {"coupling": MABN(4, warmup=0)}),
        ({"estimator": Window(10)}, {"estimator": Window(2)}),
        ({"estimator": Window(2)}, {"estimator": Window(2, total=True)}),
        ({"estimator": Window(5), "coupling": MABN(4)}, {"estimator": Window(3), "coupling": MABN(4)}),
    ],
)
def test_a_second_call_does_not_build_on_the_first(first, second):
    twice, once = (nn.Sequential(nn.BatchNorm1d(2)) for _ in range(2))
    batchnorm.convert(twice, **first)
    for model in (twice, once):
        batchnorm.convert(model, **second)
    g = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    for x in torch.randn(20, 8, 2, generator=torch.Generator().manual_seed(0)):
        outputs = [model(x) for model in (twice, once)]
        for y in outputs:
            y.backward(g)
        assert torch.equal(*outputs)
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


def test_what_the_same_choice_remembers_stays():
    layer = batchnorm.convert(nn.BatchNorm1d(2), estimator=Window(3))
    layer(torch.randn(8, 2))
    kept = layer.window_mean.clone()
    batchnorm.convert(layer, estimator=Window(3), coupling=MABN(4))
    assert torch.equal(layer.window_mean, kept)


def test_custom_subclasses_are_refused_by_name_and_nothing_changes():
    class Custom(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    model = nn.Sequential(nn.BatchNorm2d(3), Custom(3))
    with pytest.raises(batchnorm.BatchNormError, match=r"1 \(Custom\)"):
        batchnorm.convert(model)
    assert type(model[0]) is nn.BatchNorm2d
    batchnorm.convert(model, custom="keep")
    assert type(model[0]) is batchnorm.BatchNorm2d
    assert type(model[1]) is Custom


def test_unknown_method_and_model_without_batch_norm():
    with pytest.raises(batchnorm.BatchNormError, match="method must be one of batchnorm, debiased"):
        batchnorm.convert(nn.BatchNorm1d(2), "magic")
    with pytest.raises(batchnorm.BatchNormError, match="Linear has none"):
        batchnorm.convert(nn.Linear(2, 2))


def test_lazy_layers_convert():
    model = batchnorm.convert(nn.Sequential(nn.LazyBatchNorm2d()), estimator=Pooled())
    model(DATA)
    assert type(model[0]) is batchnorm.BatchNorm2d
    assert float(model[0].pooled_count) == 16 * 36


def test_frozen_stays_frozen_on_the_way_back():
    model = batchnorm.freeze(batchnorm.convert(network()))
    batchnorm.to_stock(model).train()(DATA)
    assert int(model[1].num_batches_tracked) == 0


def test_a_method_with_a_decay_of_its_own_brings_it():
    for method, momentum in (("renorm", 0.01), ("mabn", 0.02), ("online", 0.001), ("debiased", 0.3), ("ghost", 0.3)):
        layer = batchnorm.convert(nn.BatchNorm1d(2, momentum=0.3), method)
        assert layer.momentum == pytest.approx(momentum), method


def test_pooled_does_not_wipe_trained_statistics_silently():
    layer = nn.BatchNorm1d(2)
    layer(torch.randn(8, 2))
    with pytest.raises(batchnorm.BatchNormError, match="count must be given"):
        batchnorm.convert(layer, "pooled")
    assert type(layer) is nn.BatchNorm1d
    mean = layer.running_mean.clone().double()
    batchnorm.convert(layer, "pooled", count=8)
    layer(torch.full((8, 2), 3.0))
    assert torch.allclose(layer.running_mean.double(), (mean + 3) / 2)
    assert float(batchnorm.convert(layer, "pooled").pooled_count) == 16  # known by now


def test_a_schedule_becomes_its_next_value_in_stock():
    layer = batchnorm.BatchNorm1d(2, method="diminishing")
    for _ in range(4):
        layer(torch.randn(8, 2))
    assert batchnorm.to_stock(layer).momentum == pytest.approx(0.2)
    layer(torch.randn(8, 2))


def test_a_stock_state_loads_strictly_into_a_layer_with_banks():
    stock = nn.BatchNorm1d(2)
    stock(torch.randn(8, 2) + 4)
    layer = batchnorm.BatchNorm1d(2)
    with batchnorm.bank(layer, "target", own_affine=True):
        layer(torch.randn(8, 2))
    layer.load_state_dict(stock.state_dict(), strict=True)
    assert torch.equal(layer.bank_target_running_mean, stock.running_mean)


@pytest.mark.parametrize("method", ["renorm", "mabn", "diminishing", "cumulative", "pooled", "window", "debiased"])
def test_the_momentum_of_the_stock_layer_comes_back(method):
    model = batchnorm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.001)), method)
    model(DATA)
    for candidate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        candidate.load_state_dict(model.state_dict())
        assert batchnorm.to_stock(candidate)[1].momentum == 0.001
        assert "stock_momentum" not in candidate[1].__dict__
    batchnorm.convert(batchnorm.convert(model, "mabn", count=1), "renorm")
    assert batchnorm.to_stock(model)[1].momentum == 0.001


def test_a_momentum_set_after_conversion_stays():
    layer = batchnorm.convert(nn.BatchNorm1d(2, momentum=0.001), "renorm")
    layer.momentum = 0.05
    assert batchnorm.to_stock(layer).momentum == 0.05
    batchnorm.convert(batchnorm.convert(layer), "mabn").momentum = 0.04
    assert batchnorm.to_stock(batchnorm.convert(layer, "debiased")).momentum == 0.04
    assert batchnorm.to_stock(batchnorm.BatchNorm1d(2, method="renorm")).momentum == 0.01


@pytest.mark.parametrize("momentum", [2.0, -0.1, float("nan")])
def test_a_momentum_outside_its_range_is_refused_with_the_layers_path(momentum):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)))
    sentence = rf"momentum of layer '1.0' must be in \[0, 1\], the weight of the new batch; it was {momentum!r}"
    with pytest.raises(batchnorm.BatchNormError, match=sentence):
        batchnorm.convert(model, "debiased")
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("eps", [-1e-5, float("nan")])
def test_an_eps_below_0_is_refused_and_nothing_is_converted(eps):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, eps=eps))
    with pytest.raises(batchnorm.BatchNormError, match=r"eps of layer '1' must be 0 or more"):
        batchnorm.convert(model)
    assert type(model[0]) is nn.BatchNorm1d


@dataclass(frozen=True)
class Remembers(Estimator):
    """An estimator with a memory of this name."""

    name: str

    def memory(self, state, trained):
        return {self.name: torch.zeros_like(state.var)[None]}

    def move(self, state, now):
        return Move(0.1, 0.9, 0.1)


@pytest.mark.parametrize("name", ["weight", "running_mean", "training", "recipe", "forward", "mine", "part"])
def test_a_memory_whose_name_is_taken_changes_nothing(name):
    model = network()
    model[4].register_buffer("mine", torch.zeros(1))
    model[4].part = nn.Identity()
    kinds, state = [type(m) for m in model], copy.deepcopy(model.state_dict())
    with pytest.raises(batchnorm.BatchNormError, match=f"one was '{name}'"):
        batchnorm.convert(model, estimator=Remembers(name))
    assert [type(m) for m in model] == kinds
    assert model.state_dict().keys() == state.keys()
    assert not any("recipe" in m.__dict__ or "stock_momentum" in m.__dict__ for m in model)


CONTEXTS = {
    "pause": batchnorm.pause,
    "masked": lambda m: batchnorm.masked(m, torch.ones(16, dtype=torch.bool)),
    "bank": lambda m: batchnorm.bank(m, "a"),
    "accumulate": batchnorm.accumulate,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_that_it_would_end_refuse_the_way_back(name):
    model = batchnorm.convert(network())
    with CONTEXTS[name](model):
        with pytest.raises(batchnorm.BatchNormError, match=rf"inside {name}\(\), which a change of class would end"):
            batchnorm.to_stock(model)
        assert type(model[1]) is batchnorm.BatchNorm2d
        assert type(batchnorm.to_stock(copy.deepcopy(model))[1]) is nn.BatchNorm2d
        with batchnorm.pause(model):
            model(DATA)
    assert type(batchnorm.to_stock(model)[1]) is nn.BatchNorm2d


def test_a_mode_holds_on_the_way_back():
    model = batchnorm.convert(network())
    with batchnorm.models.mode(model, train=False):
        batchnorm.to_stock(model)
        assert not model[1].training
    assert model[1].training


def test_contexts_that_a_conversion_would_end_refuse_it():
    model = network()
    with batchnorm.pause(model), pytest.raises(batchnorm.BatchNormError, match=r"'1' is inside pause\(\): convert it"):
        batchnorm.convert(model)
    assert type(model[1]) is nn.BatchNorm2d
    batchnorm.convert(model)
    with batchnorm.accumulate(model):
        model(DATA)
        with pytest.raises(batchnorm.BatchNormError, match=r"'1' is inside accumulate\(\): convert it"):
            batchnorm.convert(model, "window")
    assert int(model[4].num_batches_tracked) == 1
    with batchnorm.pause(model):
        batchnorm.convert(model, "window")
        model(DATA)
    assert int(model[4].num_batches_tracked) == 1
