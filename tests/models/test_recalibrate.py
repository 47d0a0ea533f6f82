"""Recalibration on data whose statistics are known: values, error bars, what is left alone, any batch."""

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


def test_with_batch_upstream_later_layers_pool_batch_normalised_inputs():
    model = network().train()
    result = batchnorm.recalibrate(model, DATA.split(50), upstream="batch")
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
    assert (result.samples, result.batches, result.offered) == (103, 3, 103)
    assert result.layers["0"].count == 103 * 25
    assert model.training
    assert model[3].momentum == 0.0
    assert int(model[0].num_batches_tracked) == 3


def test_shift_and_standard_error_are_in_std_units():
    data = torch.randn(16000, 50, generator=torch.Generator().manual_seed(0)) * 3 + 6
    layer = nn.BatchNorm1d(50, eps=1e-9)
    layer.running_var.fill_(36.0)
    result = batchnorm.recalibrate(layer, data.split(500))
    row = result.layers[""]
    assert row.mean_shift == pytest.approx(1.0, rel=0.05)  # stored std units
    assert row.mean_error_per_channel.mean() == pytest.approx(3 / 16000**0.5, rel=0.05)
    # A Gaussian's sample variance has variance 2 sigma^4 / n.
    assert row.var_error_per_channel.mean() == pytest.approx(9 * (2 / 16000) ** 0.5, rel=0.05)
    assert row.standard_error == pytest.approx((1.5 / 16000) ** 0.5, rel=0.05)
    assert result.standard_error == row.standard_error
    assert "16000 samples" in str(result)


@pytest.mark.slow
def test_standard_errors_are_those_of_repeated_draws():
    """Ragged batches whose values are alike within a batch: the error bar is the spread over many data sets."""
    generator = torch.Generator().manual_seed(3)
    means, variances, told = [], [], []
    for _ in range(150):
        common = torch.randn(20, 8, generator=generator)
        batches = [c + torch.randn(n, 8, generator=generator).exp() for c, n in zip(common, [8, 20] * 10, strict=True)]
        row = batchnorm.recalibrate(layer := nn.BatchNorm1d(8), batches).layers[""]
        means.append(layer.running_mean)
        variances.append(layer.running_var)
        told.append(torch.stack([row.mean_error_per_channel, row.var_error_per_channel]).square().mean(1))
    actual = torch.stack([torch.stack(v).var(0).mean() for v in (means, variances)]).sqrt()
    ratio = torch.stack(told).mean(0).sqrt() / actual
    # About 5 % below one: 20 clusters of unequal size, a heavy tail, and the variance about an estimated mean.
    assert ((ratio > 0.85) & (ratio < 1.1)).all(), ratio


def test_within_variance_is_the_count_weighted_mean_of_unbiased_batch_variances():
    data = torch.cat([torch.randn(60, 1) - 5, torch.randn(20, 1) + 5])
    expected = (60 * data[:60].var() + 20 * data[60:].var()) / 80
    for upstream in ("batch", "population"):
        layer = nn.BatchNorm1d(1)
        batchnorm.recalibrate(layer, data.split(60), variance="within", upstream=upstream)
        assert float(layer.running_var) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_undo_and_frozen_and_unreached_layers(upstream):
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
    result = batchnorm.recalibrate(model, DATA.split(64), upstream=upstream)
    assert result.unreached == ("idle",)
    assert result.frozen == ("held",)
    assert result.layers["used"].count == 2 * 103 * 25  # both uses are pooled
    after = state(model)
    assert not same(before, after)
    assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("used"))
    result.undo()
    assert same(before, state(model))


@pytest.mark.parametrize("upstream", ["batch", "population"])
@pytest.mark.parametrize("kind", ["tuple", "dict", "forward_fn", "generator", "microbatches"])
def test_batches_of_any_kind(kind, upstream):
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
        "generator": (b for b in DATA.split(50)),
        "microbatches": DATA.split(50),
    }
    forward_fns = {
        "forward_fn": lambda model, batch: model(batch[1]),
        "microbatches": lambda model, batch: [model(part) for part in batch.split(7)],
    }
    model = Net()
    result = batchnorm.recalibrate(model, batches[kind], forward_fn=forward_fns.get(kind), upstream=upstream)
    assert torch.allclose(model.bn.running_mean, DATA.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model.bn.running_var, DATA.var((0, 2, 3)), rtol=1e-5)
    assert result.samples == 103


@pytest.mark.parametrize("upstream", ["batch", "population"])
@pytest.mark.parametrize("problem", ["empty", "nan", "raises", "interrupt", "one value", "no layer", "late"])
def test_bad_input_leaves_the_model_exactly_as_it_was(problem, upstream):
    model = network().train()
    model[3].eval()
    before = state(model)

    def batches():
        if problem == "nan":
            yield torch.full_like(DATA[:50], torch.nan)
            return
        yield DATA[:50]
        if problem == "raises":
            raise OSError("disk")
        if problem == "interrupt":
            raise KeyboardInterrupt
        if problem == "late":
            yield DATA[:20, :2]
        if problem == "one value":
            yield DATA[:1, :, :3, :3]

    expected = {"raises": batchnorm.BatchNormError, "interrupt": KeyboardInterrupt, "late": RuntimeError}
    if problem == "one value" and upstream == "population":
        # Nothing normalises with a batch, so a batch of one value is no obstacle.
        assert batchnorm.recalibrate(model, batches()).samples == 51
        return
    target = nn.Linear(2, 2) if problem == "no layer" else model
    loader = [] if problem in ("empty", "no layer") else batches()
    with pytest.raises(expected.get(problem, batchnorm.BatchNormError)):
        batchnorm.recalibrate(target, loader, upstream=upstream)
    assert same(before, state(model))
    assert model.training
    assert not model[3].training
    assert model[3].track_running_stats
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_an_interrupt_in_a_layer_stops_everything_and_restores_the_model(upstream):
    class Interrupting(nn.Module):
        calls = 0

        def forward(self, x):
            Interrupting.calls += 1
            if Interrupting.calls == 7:
                raise KeyboardInterrupt
            return x

    model = nn.Sequential(*network(), Interrupting(), nn.BatchNorm2d(4)).train()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        batchnorm.recalibrate(model, DATA.split(8), upstream=upstream)
    assert same(before, state(model))
    assert all(m.training for m in model.modules())
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_nothing_else_changes(upstream):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.cache = x.mean()
            return self.drop(self.bn(x)) + torch.rand(())

    model = Net().train()
    model.bn.weight.requires_grad_(False)
    handle = model.bn.register_forward_hook(lambda *_: None)
    hooks = dict(model.bn._forward_hooks)
    random_state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=16, shuffle=True)
    batchnorm.recalibrate(model, loader, upstream=upstream)
    assert torch.equal(random_state, torch.get_rng_state())
    assert float(model.calls) == 0
    assert not hasattr(model, "cache")
    assert model.drop.training
    assert not model.bn.weight.requires_grad
    assert model.bn.bias.requires_grad
    assert dict(model.bn._forward_hooks) == hooks
    assert torch.allclose(model.bn.running_mean, DATA.mean((0, 2, 3)), atol=1e-5)
    handle.remove()


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_batches_that_are_not_finite_are_left_out_and_named(upstream):
    clean, dirty = network(), network()
    bad = DATA[:10].clone()
    bad[3, 1, 2, 2] = torch.inf
    batchnorm.recalibrate(clean, [DATA[:50], DATA[50:]], upstream=upstream)
    result = batchnorm.recalibrate(dirty, [bad, DATA[:50], DATA[50:], bad], upstream=upstream)
    assert same(clean.state_dict(), dirty.state_dict())
    assert result.skipped == ((0, "0"), (3, "0"))
    assert (result.samples, result.batches) == (103, 2)
    assert "2 batches were not finite" in str(result)


def test_a_batch_that_overflows_deep_in_the_network_leaves_no_trace_in_earlier_layers():
    def deep():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), Overflow(), nn.BatchNorm1d(2))

    class Overflow(nn.Module):
        def forward(self, x):
            return torch.where((x.abs() > 5).any(), x * torch.inf, x)

    data = torch.randn(60, 2)
    loud = torch.cat([torch.randn(19, 2), torch.full((1, 2), 1e3)])
    clean, dirty = deep(), deep()
    batchnorm.recalibrate(clean, data.split(20))
    result = batchnorm.recalibrate(dirty, [*data.split(20), loud])
    assert result.skipped == ((3, "3"),)
    assert same(clean.state_dict(), dirty.state_dict())


def test_torch_update_bn_gets_ragged_batches_wrong_where_this_is_exact():
    data = torch.cat([torch.zeros(64, 1), torch.full((2, 1), 10.0)]) + torch.randn(66, 1)
    stock, ours = nn.Sequential(nn.BatchNorm1d(1)), nn.Sequential(nn.BatchNorm1d(1))
    torch.optim.swa_utils.update_bn(data.split(64), stock)
    batchnorm.recalibrate(ours, data.split(64))
    assert abs(float(stock[0].running_mean - data.mean())) > 4
    assert float(ours[0].running_mean) == pytest.approx(float(data.mean()), abs=1e-6)


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_the_coupling_does_not_matter_and_a_pause_around_it_holds(upstream):
    stock, population = network(), batchnorm.convert(network(), "population")
    batchnorm.recalibrate(stock, DATA.split(50), upstream=upstream)
    with batchnorm.pause(population):
        batchnorm.recalibrate(population, DATA.split(50), upstream=upstream)
        assert population[0].paused
    assert torch.allclose(stock[3].running_var, population[3].running_var, rtol=1e-5)
    assert not population[0].paused


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_first_layer_is_float64_exact_at_any_mean(offset, memory_format):
    x = torch.randn(40, 3, 17, 19, generator=torch.Generator().manual_seed(0)) + offset
    layer = nn.BatchNorm2d(3)
    batchnorm.recalibrate(layer, [b.contiguous(memory_format=memory_format) for b in x.split(16)])
    wide = x.double()
    # In standard deviations (they are 1): float32's rounding of what is stored, and little else.
    assert torch.allclose(layer.running_mean.double(), wide.mean((0, 2, 3)), rtol=6e-8, atol=2e-8)
    assert torch.allclose(layer.running_var.double(), wide.var((0, 2, 3)), rtol=1.2e-7, atol=0)


def test_the_target_s_convention_of_variance_is_kept():
    x = torch.randn(6, 2)
    unbiased, biased = batchnorm.BatchNorm1d(2), batchnorm.BatchNorm1d(2, estimator=batchnorm.layers.EMA(correction=0))
    for layer in (unbiased, biased):
        batchnorm.recalibrate(layer, [x])
    assert torch.allclose(unbiased.running_var, x.var(0), rtol=1e-6)
    assert torch.allclose(biased.running_var, x.var(0, correction=0), rtol=1e-6)


@pytest.mark.parametrize("upstream", ["batch", "population"])
def test_masks_are_what_the_layers_were_given(upstream):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = batchnorm.BatchNorm1d(2)

        def forward(self, x, mask):
            return self.bn(x, mask)

    x = torch.randn(30, 2, 7)
    mask = torch.rand(30, 7) > 0.4
    x[(~mask)[:, None].expand_as(x)] = 1e6
    model = Net()
    batchnorm.recalibrate(
        model, list(zip(x.split(10), mask.split(10), strict=True)), forward_fn=lambda m, b: m(*b), upstream=upstream
    )
    data = x.movedim(1, 2)[mask]
    assert torch.allclose(model.bn.running_mean, data.mean(0), atol=1e-6)
    assert torch.allclose(model.bn.running_var, data.var(0), rtol=1e-5)


def test_select_and_apply_to():
    model, copied = network(), network()
    before = state(model)
    result = batchnorm.recalibrate(model, DATA.split(50), select=["0"], apply_to=copied)
    assert same(before, state(model))
    assert list(result.layers) == ["0"]
    assert torch.allclose(copied[0].running_mean, DATA.mean((0, 2, 3)), atol=1e-5)
    assert float(copied[3].running_mean.abs().sum()) == 0
    result.undo()
    assert same(before, state(copied))
    by_rule = batchnorm.recalibrate(model, DATA.split(50), select=lambda name, layer: layer.num_features == 4)
    assert list(by_rule.layers) == ["3"]
    with pytest.raises(batchnorm.BatchNormError, match="select must name batch norm layers of the model, such as '0'"):
        batchnorm.recalibrate(model, DATA.split(50), select=["nothing"])
    with pytest.raises(batchnorm.BatchNormError, match="apply_to must be a copy"):
        batchnorm.recalibrate(model, DATA.split(50), apply_to=nn.Sequential(nn.BatchNorm2d(3)))


def test_a_bank_is_written_and_the_others_stay():
    model = batchnorm.convert(network())
    for layer in (model[0], model[3]):
        layer.make_bank("night", False)
        layer.make_bank("day", False)
    before = state(model)
    result = batchnorm.recalibrate(model, DATA.split(50), bank="night")
    after = state(model)
    assert torch.allclose(after["0.bank_night_running_mean"], DATA.mean((0, 2, 3)), atol=1e-5)
    assert int(after["3.bank_night_num_batches_tracked"]) == 3
    assert all(torch.equal(before[k], after[k]) for k in before if "night" not in k)
    assert model[0].active_bank is None
    # The second layer saw what the bank's own statistics give, not the default's.
    other = network()
    batchnorm.recalibrate(other, DATA.split(50))
    assert torch.allclose(after["3.bank_night_running_var"], other[3].running_var, rtol=1e-5)
    result.undo()
    assert same(before, state(model))
    with pytest.raises(batchnorm.BatchNormError, match="bank must be one of \\['day', 'night'\\]"):
        batchnorm.recalibrate(model, DATA.split(50), bank="noon")


def test_standing_statistics_of_a_generator_per_truncation_level():
    torch.manual_seed(0)
    generator = batchnorm.convert(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)))
    levels = {"full": 1.0, "half": 0.5}
    for name, level in levels.items():
        generator[1].make_bank(name, False)
        noise = (torch.randn(64, 4) * level for _ in range(50))
        batchnorm.recalibrate(generator, noise, bank=name)
    full, half = (generator[1]._named(name, "running_var") for name in levels)
    assert torch.allclose(half, full / 4, rtol=0.1)


def test_what_estimators_remember_starts_from_the_new_statistics():
    x = torch.randn(90, 2) + 3
    pooled = batchnorm.BatchNorm1d(2, method="pooled")
    batchnorm.recalibrate(pooled, x.split(30))
    more = torch.randn(30, 2)
    pooled.train()(more)
    both = torch.cat([x, more])
    assert torch.allclose(pooled.running_mean, both.mean(0), atol=1e-6)
    assert torch.allclose(pooled.running_var, both.var(0), rtol=1e-5)
    window = batchnorm.BatchNorm1d(2, method="window")
    window.train()(torch.full((8, 2), 50.0) + torch.randn(8, 2))
    batchnorm.recalibrate(window, x.split(30))
    window.train()(x[:30])
    assert (window.running_mean - x.mean(0)).abs().max() < 0.5  # nothing of the 50 is left


def test_max_samples_offered_and_early_reading():
    asked = []

    def batches():
        for start in range(0, 100, 10):
            asked.append(start)
            yield DATA[start : start + 10]

    result = batchnorm.recalibrate(network(), batches(), max_samples=25)
    assert (result.samples, result.batches, result.offered) == (30, 3, None)
    assert len(asked) == 3
    result = batchnorm.recalibrate(network(), DATA.split(10), max_samples=25, upstream="batch")
    assert (result.samples, result.offered) == (30, 103)
    assert "30 of the 103 samples" in str(result)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variance": "mean"}, "variance must be 'total' or 'within'; it was 'mean'"),
        ({"upstream": "stored"}, "upstream must be 'population' or 'batch'; it was 'stored'"),
        ({"until": 0.0}, "until must be a positive number of standard deviations; it was 0.0"),
        ({"max_samples": 0}, "max_samples must be an integer of 1 or more; it was 0"),
        ({"resume": "nowhere/at/all"}, "resume must lie in an existing folder"),
        ({"process_group": object()}, "process_group must belong to an initialised torch.distributed"),
    ],
)
def test_arguments_are_checked_before_anything_changes(arguments, sentence):
    model = network()
    before = state(model)
    with pytest.raises(batchnorm.BatchNormError, match=sentence):
        batchnorm.recalibrate(model, DATA.split(50), **arguments)
    assert same(before, state(model))


@pytest.mark.parametrize(
    ("batch", "call"), [((DATA, DATA), r"model\(\*batch\[:2\]\)"), (((DATA, DATA), 0), r"model\(\*batch\[0\]\)")]
)
def test_a_model_of_two_inputs_is_told_how_it_is_called(batch, call):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x, z):
            return self.norm(x + z)

    with pytest.raises(
        batchnorm.BatchNormError, match=f"takes 2 inputs: give forward_fn, as lambda model, batch: {call}"
    ):
        batchnorm.recalibrate(Two(), [batch])
    hinted = batchnorm.recalibrate(Two(), [(DATA, DATA)], forward_fn=lambda model, batch: model(*batch[:2]))
    assert hinted.samples == 103
