"""Conventions against closed forms, and against what the libraries' own updates leave behind."""

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm import BatchNormError, recalibrate
from batchnorm.interop import rescale_variance, torch_momentum, translate, variance_from
from batchnorm.interop.statistics import settled


@pytest.mark.parametrize("form", ["variance", "std", "std_plus_eps", "std_with_eps", "second_moment"])
def test_every_form_gives_the_variance_back(form):
    mean, var, eps = np.array([3.0, -1.0, 0.0]), np.array([4.0, 0.25, 0.0]), 1e-3
    stored = {
        "variance": var,
        "std": np.sqrt(var),
        "std_plus_eps": np.sqrt(var) + eps,
        "std_with_eps": np.sqrt(var + eps),
        "second_moment": var + mean**2,
    }[form]
    np.testing.assert_allclose(variance_from(stored, form, mean=mean, eps=eps), var, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: variance_from(np.ones(1), "precision"), "form must be 'variance', 'std'"),
        (lambda: variance_from(np.ones(1), "second_moment"), "mean must be given"),
        (lambda: variance_from(np.ones(1), "std_with_eps"), "eps must be given"),
        (lambda: variance_from(np.ones(1), "second_moment", mean=np.array([2.0])), "a variance of -3"),
        (lambda: rescale_variance(np.ones(1), 1, "biased", "unbiased"), "count must be 2 or more"),
        (lambda: torch_momentum(1.5), r"other must be in \[0, 1\]"),
    ],
)
def test_what_no_variance_can_be_is_refused(call, sentence):
    with pytest.raises(BatchNormError, match=sentence):
        call()


def test_momentum_turns_round_and_back_exactly():
    assert torch_momentum(torch_momentum(0.99)) == 0.99


def test_a_decay_is_settled_when_float32_no_longer_sees_it():
    assert np.float32(1) - np.float32(0.99) ** settled(0.99) == 1
    assert settled(0.99) == pytest.approx(26 * np.log(2) / -np.log(0.99), abs=1)


def biased_history(batches, decay):
    """A running mean and variance as Keras and Flax move them."""
    mean, var = np.zeros(batches.shape[2]), np.ones(batches.shape[2])
    for x in batches:
        mean, var = decay * mean + (1 - decay) * x.mean(0), decay * var + (1 - decay) * x.var(0)
    return mean, var


@pytest.mark.parametrize("steps", [3, 100])
def test_with_count_and_steps_the_variance_is_what_torch_would_have_gathered(steps):
    batches = np.random.default_rng(0).normal(2, 3, (steps, 4, 6))
    mean, var = biased_history(batches, 0.9)
    variables = {
        "params": {"bn": {"scale": np.ones(6), "bias": np.zeros(6)}},
        "batch_stats": {"bn": {"mean": mean, "var": var}},
    }
    torch_net = nn.Sequential(nn.BatchNorm1d(6, momentum=0.1, dtype=torch.float64))
    for x in batches:
        torch_net(torch.from_numpy(x))
    net = nn.Sequential(nn.BatchNorm1d(6, dtype=torch.float64))
    translate(variables, net, eps=1e-5, momentum=0.1, count=4, steps=steps)
    torch.testing.assert_close(net.state_dict(), torch_net.state_dict(), rtol=1e-12, atol=1e-12)
    assert net[0].momentum == 0.1
    # Without the number of steps the initial 1 is taken for data, and without a count 1 / n is missing.
    translate(variables, net, eps=1e-5, momentum=0.1, count=4)
    wrong = 0.9**steps * (4 / 3 - 1)
    torch.testing.assert_close(net[0].running_var - wrong, torch_net[0].running_var, rtol=1e-12, atol=1e-12)
    # And back: Flax would have gathered its own.
    back = translate(torch_net, variables, count=4).target
    np.testing.assert_allclose(back["batch_stats"]["bn"]["var"], var, rtol=1e-12)


def test_without_count_the_variance_is_carried_and_the_cost_is_said():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net[0].running_var.copy_(torch.tensor([2.0, 5.0]))
    result = translate(net, "flax")
    assert result.target["batch_stats"]["0"]["var"].tolist() == [2.0, 5.0]
    assert "torch stores it unbiased, flax would have stored it biased" in result.notes[0]
    assert "epsilon=1e-05, momentum=0.9" in result.notes[1]
    one = translate(net, "flax", count={"0": 5.0})
    np.testing.assert_allclose(one.target["batch_stats"]["0"]["var"], [1.6, 4.0], rtol=1e-6)
    assert len(one.notes) == 1


def test_a_running_std_is_recognised_by_its_key():
    state = {"norm.running_mean": torch.zeros(2), "norm.running_std": torch.tensor([2.0, 3.0])}
    assert translate(state, "torch").target["norm.running_var"].tolist() == [4.0, 9.0]
    back = translate(translate(state, "torch").target, state).target
    assert back["norm.running_std"].tolist() == [2.0, 3.0]


def test_a_debiased_average_of_haiku_goes_on_as_if_never_moved():
    """hidden = average * (1 - d^t) with the counter the source had, or a counter so old that debiasing is over."""
    ema = {"average": np.ones((1, 2), np.float32), "hidden": np.ones((1, 2), np.float32), "counter": np.array(0)}
    params = {"bn": {"scale": np.ones((1, 2), np.float32), "offset": np.zeros((1, 2), np.float32)}}
    haiku = (params, {"bn/~/mean_ema": dict(ema), "bn/~/var_ema": dict(ema)})
    net = nn.Sequential(nn.BatchNorm1d(2, momentum=0.1))
    net[0].running_mean.copy_(torch.tensor([2.0, 4.0]))
    state = translate(net, haiku).target[1]["bn/~/mean_ema"]
    assert 0.9 ** int(state["counter"]) < 2**-24
    assert state["hidden"].tolist() == state["average"].tolist() == [[2.0, 4.0]]
    net[0].num_batches_tracked.fill_(3)
    state = translate(net, haiku).target[1]["bn/~/mean_ema"]
    assert int(state["counter"]) == 3
    np.testing.assert_allclose(state["hidden"], np.array([[2.0, 4.0]]) * (1 - 0.9**3), rtol=1e-6)
    assert int(translate((haiku[0], {**haiku[1]}), "torch").target["bn.num_batches_tracked"]) == 0


def test_recalibrated_statistics_hold_nothing_of_the_initial_variance():
    """Their counter counts the batches of the recalibration, not steps of an average that began at 1."""
    x = torch.randn(1600, 2) * 0.03
    torch_net = nn.Sequential(nn.BatchNorm1d(2))
    recalibrate(torch_net, [x], progress=False)
    one = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    target = {"params": {"bn": one}, "batch_stats": {"bn": {"mean": np.zeros(2, "f"), "var": np.ones(2, "f")}}}
    var = translate(torch_net, target, count=16).target["batch_stats"]["bn"]["var"]
    np.testing.assert_allclose(var, x.var(0).numpy() * 15 / 16, rtol=1e-5)
