"""Bugs and surprises of other implementations, each named, each absent here."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNormError
from batchnorm.layers import (
    EMA,
    MABN,
    METHODS,
    Cumulative,
    Ghost,
    Mixture,
    Policy,
    Pooled,
    PopulationCoupling,
    Renorm,
    UnifiedNorm,
    Window,
)
from tests.methods.plain import batch_norm, close, data, moments, randn, run
from tests.subjects import Subject

MASKABLE = [method for method in METHODS if method not in ("cbn", "weighted")]


def layer(channels=2, **options):
    return BatchNorm1d(channels, dtype=torch.float64, **options)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Estimators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_equinox_debias_of_an_accumulator_that_starts_at_one(steps):
    """equinox 0.13.8: inference variance v + m^t / (1 - m^t), 100 at t = 1 where the truth is 1."""
    debiased = layer(estimator=EMA(0.99, debias=True, correction=0))
    x = randn(64, 2)
    for _ in range(steps):
        debiased(x)
    assert close(debiased.running_var, x.var(0, correction=0))


def test_torch_ragged_last_batch_counts_like_a_whole_one():
    """torch momentum=None and update_bn: 2 samples weigh what 98 do; Pooled weighs by what batches hold."""
    x = torch.cat([randn(98, 2), 10 + randn(2, 2)])
    pooled, stock = layer(estimator=Pooled()), nn.BatchNorm1d(2, momentum=None, dtype=torch.float64)
    for part in x.split(98):
        pooled(part)
        stock(part)
    assert close(pooled.running_mean, x.mean(0))
    assert (stock.running_mean - x.mean(0)).abs().min() > 4


@pytest.mark.parametrize("estimator", [Pooled(), EMA(0.5, total=True), Window(50, total=True)], ids=repr)
def test_variance_within_batches_alone(estimator):
    """torch, composer, timm, pycls: on batches sorted by value the spread of their means is lost (1.00 for 6.5)."""
    sorted_data = torch.cat([i * 2.0 + randn(20, 1, seed=i) for i in range(4)])
    one = layer(1, estimator=estimator)
    for part in sorted_data.split(20):
        one(part)
    assert one.running_var > 2.0
    if not isinstance(estimator, EMA):
        assert close(one.running_var, sorted_data.var(0, correction=1))


def test_torch_momentum_none_breaks_compilation():
    """torch: `1 / float(counter)` is data-dependent; here the gain stays a tensor."""
    torch.compiler.reset()
    cumulative = layer(estimator=Cumulative())
    twin = copy.deepcopy(cumulative)
    compiled = torch.compile(twin, fullgraph=True, backend="eager")
    for step in range(3):
        x = data(step, 5, 2)
        assert close(compiled(x), cumulative(x))
    assert close(twin.running_var, cumulative.running_var)


def test_torch_half_precision_statistics_freeze():
    """torch: a bfloat16 running mean stops at 4.0 on its way to 10 with momentum 1e-3."""
    narrow = BatchNorm1d(1, momentum=1e-3).bfloat16()
    narrow.running_mean.fill_(8.0)
    x = 10 + torch.tensor([[-1.0], [1.0]], dtype=torch.bfloat16)
    for _ in range(100):
        narrow(x)
    assert abs(float(narrow.running_mean) - (10 - 2 * 0.999**100)) < 1e-4


def test_flax_narrow_dtype_rounds_statistics_at_inference_alone():
    """flax dtype=bfloat16: |train - eval| up to 0.47 at a mean of many units."""
    narrow = BatchNorm1d(1, momentum=1.0).bfloat16()
    x = (100 + torch.arange(-4, 5).float())[:, None].bfloat16()
    trained = narrow(x).float()
    inferred = narrow.eval()(x).float() * (9 / 8) ** 0.5
    assert (trained - inferred).abs().max() < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_torch_one_batch_of_nan_poisons_the_statistics(method):
    """torch and all others; here it is skipped and counted, and what backward remembers stays clean too."""
    subject = Subject(method, 3, dtype=torch.float64)
    subject(data(1, 4, 3, 2, 2)).sum().backward()
    before = state(subject)
    x = data(1, 4, 3, 2, 2)
    x[1] = torch.nan
    subject(x).sum().backward()
    moved = [name for name, value in subject.state_dict().items() if not torch.equal(value, before[name])]
    if method == "online":
        # Its samples are a stream: the three good ones count.
        assert all(torch.isfinite(value).all() for value in subject.state_dict().values())
    else:
        assert [name for name in moved if "seen" not in name or method != "unified"] == []
    assert int(subject.layer.num_batches_skipped) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.1])
def test_sam_bypass_by_momentum_zero_advances_a_cumulative_average(momentum):
    """davda54/sam sets momentum to 0, which does nothing to momentum=None; here every estimator obeys."""
    for estimator in (EMA(), EMA(debias=True), Cumulative(), Pooled(), Window(2), Window(2, total=True)):
        one = layer(estimator=estimator)
        one(data(1, 5, 2))
        before = one.running_mean.clone()
        one.momentum = momentum
        one(data(3, 5, 2))
        assert torch.equal(one.running_mean, before) is (momentum == 0)


def test_no_library_lets_choose_the_correction():
    """All: biased or unbiased is the library's choice; here it is the user's."""
    x = data(1, 5, 2)
    for correction in (0, 1):
        one = layer(momentum=1.0, estimator=EMA(correction=correction))
        one.momentum = 1.0
        one(x)
        assert close(one.running_var, x.var(0, correction=correction))


def test_apex_and_inplace_abn_unbiased_variance_of_one_value_is_infinite():
    """inplace_abn: running_var * n / (n - 1) at n = 1; torch.batch_norm called directly stores NaN."""
    one = layer()
    with pytest.raises(BatchNormError, match="more than 1 value per channel"):
        one(randn(1, 2))
    assert torch.isfinite(one.running_var).all()
    assert int(one.num_batches_tracked) == 0
    lenient = layer(policy=Policy(too_few="population"))
    assert close(lenient(randn(1, 2)), randn(1, 2) / (1 + 1e-5) ** 0.5)


# Numerics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["batchnorm", "ghost", "renorm", "population", "masked", "cumulative"])
def test_haiku_flax_and_keras_cancel_at_mean_1000_and_deviation_a_tenth(method):
    """E[x^2] - E[x]^2 in float32: haiku 25 % NaN, flax variance 0 or 0.0625, keras-torch NaN at mean 5000."""
    for mean in (1000.0, 5000.0):
        x = (mean + 0.1 * randn(64, 2, 8)).float()
        one = BatchNorm1d(2, method=method, momentum=1.0, eps=1e-6)
        given = {"mask": torch.ones(64, 8, dtype=torch.bool)} if method == "masked" else {}
        y = one(x, **given)
        truth = x.double().var((0, 2), correction=0)
        assert torch.allclose(one.running_var.double(), truth, rtol=5e-3)
        if method != "renorm":
            assert torch.allclose(y.std((0, 2)), torch.ones(2), atol=0.05)
        assert torch.isfinite(y).all()


def test_haiku_float16_squares_overflow():
    """haiku: variance infinite at a standard deviation of 300."""
    x = (300 * randn(64, 2)).half()
    one = BatchNorm1d(2, momentum=1.0)
    one(x)
    assert torch.allclose(one.running_var.double(), x.double().var(0), rtol=1e-3)


def test_detectron_and_fvcore_negative_variance():
    """Pooled over batches at mean 1e4: others give -16 from E[x^2] - E[x]^2 in float32."""
    one = BatchNorm1d(1, estimator=Pooled())
    batches = [(1e4 + randn(32, 1, seed=s)).float() for s in range(5)]
    for batch in batches:
        one(batch)
    assert torch.allclose(one.running_var.double(), torch.cat(batches).double().var(0), rtol=1e-3)


# Batch Renormalization ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [10_000, 60_000, 10**6])
def test_torchrl_warm_up_counter_runs_past_the_clip(done):
    """torchrl 0.14.1: clamp_max is not in place, so after k warm-ups the correction is multiplied by k."""
    for schedule in ("paper", "crossq"):
        one = layer(method="renorm", coupling=Renorm(schedule=schedule))
        one.num_batches_tracked.fill_(done)
        y = one(1e6 + 100 * randn(16, 2))
        assert (y.mean(0) <= 5 + 1e-9).all()
        assert (y.std(0, correction=0) <= 3 + 1e-9).all()


def test_torchrl_bessel_by_the_number_of_samples_alone():
    """torchrl: N / (N - 1) with N the first axis, twice the truth at N = 2 and infinite at N = 1."""
    for n in (1, 2):
        x = randn(n, 2, 1000)
        one = BatchNorm1d(2, method="renorm", momentum=1.0, dtype=torch.float64)
        one(x)
        assert close(one.running_var, x.var((0, 2), correction=0))


def test_sb3_normalises_with_the_unbiased_variance():
    """sb3-contrib: the unbiased batch variance normalises."""
    x = randn(3, 2)
    one = layer(method="renorm", coupling=Renorm(1.0, 0.0))
    assert close(one(x), batch_norm(x))


@pytest.mark.parametrize("deviation", [1.0, 0.1, 0.03, 0.003])
def test_sbx_adds_eps_after_the_correction(deviation):
    """sbx and CrossQ: output off by 0.4 at a feature deviation of 0.03, since eps joins after r."""
    one = layer(method="renorm", coupling=Renorm(1e9, 1e9), eps=1e-3)
    one(deviation * randn(64, 2))
    frozen = copy.deepcopy(one).eval()
    x = deviation * randn(64, 2, seed=1) + deviation
    assert close(one(x), frozen(x))


def test_ludvb_adds_eps_to_the_deviation_and_clips_with_it():
    """ludvb: running_std is an average of std + eps; here of sqrt(var + eps), stored as its square minus eps."""
    one = layer(method="renorm", momentum=1.0, eps=0.5)
    x = 3 * randn(50, 2)
    one(x)
    assert close(one.running_var, x.var(0, correction=0))


def test_keras_renorm_without_limits_must_be_said():
    """keras: missing clip keys mean no clipping at all; here the paper's limits are the default."""
    assert (Renorm().r_max, Renorm().d_max) == (3.0, 5.0)
    y = layer(method="renorm")(1e3 + randn(16, 2))
    assert close(y.mean(0), torch.full((2,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("sigma", [True, False])
def test_keras_average_of_sigma_is_a_choice(sigma):
    """keras: moving_variance = (E std)^2, 7.3 for 9 over batches of 8. The paper's rule; `sigma=` chooses."""
    batches = [3 * randn(8, 1, seed=s) for s in range(40)]
    one = layer(1, estimator=Cumulative(sigma=sigma, correction=0), eps=1e-5)
    for batch in batches:
        one(batch)
    deviations = torch.stack([(b.var(0, correction=0) + 1e-5).sqrt() for b in batches])
    expected = deviations.mean(0).square() - 1e-5 if sigma else deviations.square().mean(0) - 1e-5
    assert close(one.running_var, expected, 1e-10)


def test_error_texts_lack_their_values():
    """keras and ludvb: '{rmax}' is printed as it stands."""
    with pytest.raises(BatchNormError, match=r"r_max must be 1 or more; it was 0\.5"):
        Renorm(r_max=0.5)
    with pytest.raises(BatchNormError, match=r"d_max must be 0 or more; it was -1"):
        Renorm(d_max=-1)


# Masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MASKABLE)
def test_flax_empty_mask_is_nan_for_ever_and_keras_pulls_to_zero(method):
    """Nothing counts: output and every gradient are zero, and no statistic moves."""
    one = layer(method=method)
    one(data(1, 4, 2, 3), **({"mask": torch.ones(4, 3, dtype=torch.bool)} if method == "masked" else {}))
    before = state(one)
    empty = torch.zeros(4, 3, dtype=torch.bool)
    got = run(one, data(2, 4, 2, 3), randn(4, 2, 3), mask=empty)
    for value in got:
        assert torch.equal(value, torch.zeros_like(value))
    assert unchanged(one, before)


@pytest.mark.parametrize("method", [m for m in MASKABLE if m not in ("online",)])
def test_a_ghost_group_of_padding_is_nan(method):
    one = layer(method=method, extent=Ghost(2))
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[:2] = False
    got = run(one, data(2, 4, 2, 3), randn(4, 2, 3), mask=mask)
    alone = run(layer(method=method, extent=Ghost(2)), data(2, 4, 2, 3)[2:], randn(4, 2, 3)[2:], mask=mask[2:])
    assert close(got.y[2:], alone.y)
    assert close(got.dx[2:], alone.dx)
    assert close(got.dweight, alone.dweight)


@pytest.mark.parametrize("training", [True, False])
def test_nan_in_padding_leaks(training):
    """Masks by multiplication: 0 * NaN."""
    one = layer().train(training)
    x = data(1, 4, 2, 3)
    mask = torch.tensor([True, True, True, False])
    clean = run(one, x, randn(4, 2, 3), mask=mask)
    x[3] = torch.nan
    dirty = run(one, x, randn(4, 2, 3), mask=mask)
    for a, b in zip(dirty, clean, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("axis", [1, -1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_keras_mask_with_one_channel_or_another_axis(axis, channels):
    """keras: C = 1 crashes; an axis other than the last crashes or is silently wrong on square data."""
    one = BatchNorm(channels, channel_axis=axis, momentum=1.0, dtype=torch.float64)
    shape = [3, 3, 3]
    shape[axis] = channels
    x, mask = randn(*shape), torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    one(x, mask=mask)
    values = x.movedim(axis, -1)[mask]
    assert close(one.running_mean, values.mean(0))
    assert close(one.running_var, values.var(0, correction=1))


def test_ludvb_mask_means_padding():
    """ludvb: True is padding; here True is data, as in Keras and Flax."""
    one = layer(momentum=1.0)
    x = data(1, 4, 2)
    one(x, mask=torch.tensor([True, True, True, False]))
    assert close(one.running_mean, x[:3].mean(0))


def test_keras_mask_together_with_sync_is_ignored():
    one, plain = layer(method="sync", momentum=1.0), layer(momentum=1.0)
    x, mask = data(1, 4, 2), torch.tensor([True, True, True, False])
    one(x, mask=mask)
    plain(x[:3])
    assert close(one.running_var, plain.running_var)


# Ghost groups ------------------------------------------------------------------------------------------------


def test_composer_ghost_raises_below_its_size_even_in_eval():
    ghost, plain = layer(method="ghost"), layer()
    x = data(1, 3, 2)
    assert close(ghost(x), plain(x))
    assert close(ghost.eval()(x[:1]), plain.eval()(x[:1]))


def test_composer_ghost_asserts_a_momentum():
    ghost = layer(extent=Ghost(2), momentum=None)
    for step in range(3):
        ghost(data(step, 4, 2))
    assert close(ghost.running_mean, torch.stack([data(s, 4, 2).mean(0) for s in range(3)]).mean(0))


def test_composer_wrapper_renames_the_keys():
    assert list(layer(method="ghost").state_dict()) == list(nn.BatchNorm1d(2).state_dict())


def test_composer_leaves_the_momentum_scaled_after_an_exception():
    ghost = layer(extent=Ghost(2, "sequential"))
    with pytest.raises(ValueError, match="expected"):
        ghost(randn(4, 2, 2, 2))
    assert ghost.momentum == 0.1


def test_tensorpack_moves_the_average_by_the_first_group_alone():
    ghost = layer(extent=Ghost(2), momentum=1.0)
    x = data(1, 6, 2)
    ghost(x)
    assert close(ghost.running_mean, x.mean(0))


def test_tabnet_horizon_of_the_average_shrinks_with_the_number_of_groups():
    """TabNet and torch's per-chunk loops: k updates of momentum m weigh 1 - (1 - m)^k, 0.57 for 0.1 at k = 8."""
    ghost = layer(extent=Ghost(2))
    ghost(torch.cat([x := randn(16, 2) + 5]))
    assert close(ghost.running_mean, 0.1 * x.mean(0))


def test_tf_virtual_batch_must_divide_and_chunks_leave_one_over():
    """TF needs divisibility; torch.chunk leaves a remainder of one, which raises."""
    for n in (5, 7, 9, 33):
        y = layer(extent=Ghost(2))(data(1, n, 2))
        assert torch.isfinite(y).all()


# MABN, cross-iteration, online, power, unified ---------------------------------------------------------------


def test_mabn_item_breaks_the_graph():
    """MABN calls .item() in every forward: a wait, and no fullgraph."""
    torch.compiler.reset()
    subject = Subject("mabn", 2, rank=2)
    y = torch.compile(subject, fullgraph=True, backend="eager")(torch.randn(4, 2))
    assert torch.isfinite(y).all()


def test_mabn_statistics_have_another_shape_than_torchs():
    """MABN: running_var is (1, C, 1, 1); a stock state does not load."""
    stock = nn.BatchNorm2d(3)
    stock(torch.randn(4, 3, 2, 2))
    one = BatchNorm2d(3, method="mabn")
    one.load_state_dict(stock.state_dict(), strict=True)
    assert torch.equal(one.running_var, stock.running_var)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_mabn_and_detectron_take_four_axes_only(rank):
    for method in ("mabn", "power", "unified", "online", "renorm"):
        subject = Subject(method, 2, rank=rank)
        assert torch.isfinite(subject(torch.randn(4, 2, *[3] * (rank - 2)))).all()


def test_mabn_average_lags_behind_the_window():
    """MABN feeds its running moment with the window's mean, so it lags by both; here with the batch."""
    one = BatchNorm2d(1, method="mabn", coupling=MABN(window=4, warmup=0), momentum=0.5, dtype=torch.float64)
    expected = torch.ones(1, dtype=torch.float64)
    for step in range(6):
        x = data(step, 2, 1, 2, 2)
        one(x)
        expected = 0.5 * expected + 0.5 * x.square().mean()
    assert close(one.running_var, expected)


def test_cross_iteration_state_is_lists_that_are_not_saved_nor_moved():
    """CBN: python lists, lost on save, .to() and resume; `.cuda()` in its constructor."""
    net = Subject("cbn", 3)
    for _ in range(3):
        net(torch.randn(4, 3, 2, 2)).sum().backward()
    names = [name for name in net.state_dict() if "past" in name]
    assert len(names) == 6
    again = Subject("cbn", 3)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert all(torch.equal(again.state_dict()[n], net.state_dict()[n]) for n in names)
    assert net.double().layer.past_mean.dtype == torch.float64


def test_cross_iteration_divides_by_the_deviation_plus_eps_and_burns_in_unbiased():
    """CBN: eval divides by sqrt(var) + eps, and burn-in by the unbiased variance."""
    net = Subject("cbn", 3, dtype=torch.float64, eps=0.1)
    x = data(1, 4, 3, 2, 2)
    z = net.before(x.movedim(1, -1)).movedim(-1, 1)
    assert close(net(x), batch_norm(z, eps=0.1))
    mean, var = net.layer.running_mean, net.layer.running_var
    expected = (z - mean.reshape(1, -1, 1, 1)) / (var.reshape(1, -1, 1, 1) + 0.1).sqrt()
    assert close(net.eval()(x), expected)


def test_cross_iteration_without_burn_in_divides_by_zero():
    net = Subject("cbn", 3, dtype=torch.float64, coupling=batchnorm.layers.CrossIteration(burn_in=0))
    x = data(1, 4, 3, 2, 2)
    assert torch.isfinite(net(x)).all()


def test_online_rebinds_its_buffers():
    """Online norm (and fvcore): new tensors in the place of buffers break aliases, DDP and copies."""
    for method in METHODS:
        subject = Subject(method, 3)
        held = dict(subject.named_buffers())
        for step in range(3):
            subject(data(step, 4, 3, 2, 2).float()).sum().backward()
        for name, buffer in subject.named_buffers():
            assert buffer is held[name], (method, name)


def test_powernorm_warm_up_moves_its_average_twice():
    """PowerNorm: a cumulative and a moving update in every step of the warm-up."""
    one = layer(method="power")
    x = data(1, 5, 2)
    one(x)
    assert close(one.running_var, 0.9 + 0.1 * x.square().mean(0))


def test_unified_logarithm_of_an_empty_window():
    """The geometric mean of a window that is not full, or of a dead channel, stays finite."""
    one = layer(method="unified", coupling=UnifiedNorm(window=3, warmup=0))
    for step in range(5):
        x = data(step, 5, 2)
        x[:, 1] = 0
        got = run(one, x, randn(5, 2))
        assert all(torch.isfinite(value).all() for value in got)


# Population, inference, banks --------------------------------------------------------------------------------


def test_fastai_running_batch_norm_divides_by_zero_at_batch_size_one():
    one = BatchNorm1d(2, estimator=EMA(total=True), coupling=PopulationCoupling(), dtype=torch.float64)
    assert torch.isfinite(one(randn(1, 2, 5))).all()


def test_pyg_treats_the_statistics_as_constants():
    """PyG HeteroBatchNorm: mean and variance under no_grad, a wrong gradient."""
    one = layer()
    assert run(one, data(1, 6, 2), randn(6, 2)).dx.sum(0).abs().max() < 1e-12


def test_pyg_one_counter_for_all_types():
    """PyG: absent types advance too; here every bank counts its own batches."""
    one = layer(estimator=Cumulative())
    for key in ("a", "a", "b"):
        with batchnorm.bank(one, key):
            one(data(1, 5, 2))
    assert (int(one.bank_a_num_batches_tracked), int(one.bank_b_num_batches_tracked)) == (2, 1)
    assert close(one.bank_b_running_mean, data(1, 5, 2).mean(0))


def test_bethgelab_adapts_nothing_after_eval_and_leaves_out_the_gap():
    """robusta: after model.eval() the target's statistics are 0 and 1."""
    one = layer(inference=Mixture(weight=1.0, per="batch")).eval()
    x = 5 + randn(32, 2)
    assert close(one(x), batch_norm(x))
    assert close(nn.Sequential(one).eval()(x), batch_norm(x))


def test_tent_destroys_the_source_statistics():
    one = layer(inference=Mixture(weight=1.0, per="batch"))
    one(data(1, 5, 2))
    before = state(one)
    one.eval()(data(4, 5, 2))
    assert unchanged(one, before)


def test_four_things_alpha_mixes_no_other_example():
    """Mixture weights of examples must not read the batch: an example alone gives the same output."""
    one = layer(method="example-weighing").eval()
    x = randn(4, 2, 5)
    assert close(one(x)[:1], one(x[:1]))


def test_dsbn_takes_the_first_label_for_the_whole_batch():
    """DSBN reads domain_label[0]; here the domain is a context, and an unknown name is made, never guessed."""
    one = layer()
    with batchnorm.bank(one, "source"):
        one(data(1, 5, 2))
    with batchnorm.bank(one, "target"):
        one(data(4, 5, 2))
    assert one.bank_names == ("source", "target")
    assert not close(one.bank_source_running_mean, one.bank_target_running_mean, 1e-2)


def test_biggan_standing_statistics_keep_summing():
    """BigGAN: the flag stays on and further training goes on summing; a method here ends with `convert`."""
    one = layer(estimator=Cumulative())
    one(data(1, 5, 2))
    batchnorm.convert(one, estimator=EMA(0.9))
    before = one.running_mean.clone()
    one(data(4, 5, 2))
    assert close(one.running_mean, 0.9 * before + 0.1 * data(4, 5, 2).mean(0))


# Surgery and state -------------------------------------------------------------------------------------------


def test_timm_and_mmcv_lose_momentum_and_counter():
    """timm: freeze then unfreeze turns momentum 0.01 into 0.1, zeroes the counter and aliases the statistics."""
    stock = nn.BatchNorm2d(3, momentum=0.01)
    stock(torch.randn(4, 3, 2, 2))
    buffers = state(stock)
    net = nn.Sequential(stock)
    batchnorm.unfreeze(batchnorm.freeze(batchnorm.convert(net)))
    back = batchnorm.to_stock(net)[0]
    assert back.momentum == 0.01
    assert int(back.num_batches_tracked) == 1
    assert unchanged(back, buffers)


def test_lightning_frozen_layers_still_use_the_batch():
    """Lightning: track_running_stats=False normalises by the batch in training."""
    frozen = batchnorm.freeze(layer()).train()
    x = 5 + randn(6, 2)
    assert close(frozen(x), x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_converting_a_layer_that_is_the_root(method):
    """robusta, composer, mario: only children are walked, a root layer is skipped."""
    if method == "cbn":
        with pytest.raises(BatchNormError, match=r"\(root\)"):
            batchnorm.convert(nn.BatchNorm2d(3), method)
        return
    root = nn.BatchNorm2d(3)
    assert batchnorm.convert(root, method) is root
    assert isinstance(root, BatchNorm2d)


def test_inplace_abn_takes_the_absolute_value_of_gamma():
    """inplace_abn: |gamma| + eps is another function where gamma is negative."""
    one = BatchNorm1d(2, activation="leaky_relu", inplace=True, dtype=torch.float64)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([-2.0, 0.5]))
    x = randn(6, 2)
    plain = nn.functional.leaky_relu(batch_norm(x) * one.weight + one.bias, 0.01)
    assert close(one(x), plain)


def test_detectron_never_counts_and_ignores_momentum_none():
    one = layer(method="sync", momentum=None)
    for step in range(3):
        one(data(step, 5, 2))
    assert int(one.num_batches_tracked) == 3
    assert close(one.running_mean, torch.stack([data(s, 5, 2).mean(0) for s in range(3)]).mean(0))


def test_torch_sync_refuses_the_cpu():
    assert torch.isfinite(BatchNorm2d(3, method="sync")(torch.randn(4, 3, 2, 2))).all()


def test_ludvb_owns_parameters_without_affine():
    for method in METHODS:
        one = BatchNorm1d(2, method=method, affine=False)
        assert list(one.parameters()) == []


def test_ludvb_script_module_cannot_be_pickled():
    for method in METHODS:
        one = pickle.loads(pickle.dumps(BatchNorm1d(2, method=method)))
        assert one.recipe == METHODS[method]


def test_crossq_target_average_interpolates_the_step_counter():
    """CrossQ: r_max, d_max and steps live in batch_stats; here the counter is an integer and limits are no state."""
    one = layer(method="renorm", coupling=Renorm(schedule="paper"))
    assert sorted(one.state_dict()) == ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    assert one.num_batches_tracked.dtype == torch.long


def test_checkpointed_batch_seen_before_meets_the_latest_statistics():
    """Full-batch training under activation checkpointing: the recomputed forward is that of this step."""
    from torch.utils.checkpoint import checkpoint

    x, g = data(1, 5, 2), randn(5, 2)
    for method in ("renorm", "population", "mabn", "power", "unified"):
        plain, saved = Subject(method, 2, rank=2, dtype=torch.float64), Subject(method, 2, rank=2, dtype=torch.float64)
        for _ in range(5):
            a, b = (x.clone().requires_grad_() for _ in range(2))
            plain(a).backward(g)
            checkpoint(saved, b, use_reentrant=True).backward(g)
            assert close(a.grad, b.grad), method


def test_moments_of_a_reduced_batch_have_the_shape_of_the_channels():
    """OFA: squeeze() breaks one channel."""
    mean, var = moments(randn(4, 1, 3))
    one = BatchNorm1d(1, momentum=1.0, estimator=EMA(correction=0), dtype=torch.float64)
    one.momentum = 1.0
    one(randn(4, 1, 3))
    assert one.running_mean.shape == (1,)
    assert close(one.running_mean, mean)
    assert close(one.running_var, var)
