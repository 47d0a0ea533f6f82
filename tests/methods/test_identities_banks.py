"""Statistics by name, and several inputs in one pass."""

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNorm1d
from batchnorm.layers import METHODS, Moments, Pooled
from batchnorm.models import union
from tests.methods.plain import batch_norm, close, data, randn, run
from tests.subjects import Subject

KEYS = ("a", "b", "c")
KEYED = [method for method in METHODS if method != "banks"]


def step(model, x):
    """One forward and backward; the backward after whatever context the forward was in."""
    x = x.clone().requires_grad_()
    return x, model(x)


def finish(x, y, g):
    y.backward(g)
    return y.detach(), x.grad


@pytest.mark.parametrize("method", KEYED)
def test_interleaved_keys_are_as_if_alone(method):
    """Outputs, gradients and every buffer, with the backward outside of the context."""
    together = Subject(method, 3, dtype=torch.float64)
    alone = {key: Subject(method, 3, dtype=torch.float64) for key in KEYS}
    for t in range(9):
        key = KEYS[(t * t) % 3]
        x, g = data(t, 4, 3, 2, 2), randn(4, 3, 2, 2, seed=t)
        with batchnorm.bank(together, key):
            pending = step(together, x)
        got, expected = finish(*pending, g), finish(*step(alone[key], x), g)
        assert close(got[0], expected[0])
        assert close(got[1], expected[1])
    fresh = Subject(method, 3, dtype=torch.float64)
    for key in KEYS:
        for name, value in alone[key].layer.state_dict().items():
            if name not in ("weight", "bias") and f"bank_{key}_{name}" in together.layer.state_dict():
                assert torch.equal(together.layer.state_dict()[f"bank_{key}_{name}"], value), (key, name)
    for name, value in fresh.layer.named_buffers():
        assert torch.equal(getattr(together.layer, name), value), name


def test_one_key_and_keys_of_identical_data_are_batch_norm():
    plain, banked = BatchNorm1d(3, dtype=torch.float64), BatchNorm1d(3, dtype=torch.float64)
    for t in range(4):
        x = data(t, 6, 3)
        expected = plain(x)
        for key in KEYS:
            with batchnorm.bank(banked, key):
                assert close(banked(x), expected)
    for key in KEYS:
        with batchnorm.bank(banked.eval(), key):
            assert close(banked(x), plain.eval()(x))


def test_keys_merge_to_the_pooled_moments_by_the_law_of_total_variance():
    layer = BatchNorm1d(3, estimator=Pooled(correction=0), dtype=torch.float64)
    parts = {"a": data(0, 5, 3), "b": data(4, 9, 3)}
    for key, x in parts.items():
        with batchnorm.bank(layer, key):
            layer(x)
    held = []
    for key, x in parts.items():
        n = torch.full((3,), float(len(x)), dtype=torch.float64)
        mean, var = (getattr(layer, f"bank_{key}_running_{what}") for what in ("mean", "var"))
        held.append(Moments(n, mean, var * n))
    merged, everything = held[0].merge(held[1]), torch.cat(list(parts.values()))
    assert close(merged.mean, everything.mean(0))
    assert close(merged.var(0), everything.var(0, correction=0))


def test_own_affine_is_trained_apart_and_stays_in_its_bank():
    layer = BatchNorm1d(2, dtype=torch.float64)
    x = randn(6, 2)
    with batchnorm.bank(layer, "own", own_affine=True):
        y = layer(x)
    y.sum().backward()
    assert layer.weight.grad is None
    assert close(layer.bank_own_bias.grad, torch.full((2,), 6.0, dtype=torch.float64))
    with torch.no_grad():
        layer.bank_own_weight.fill_(3.0)
    with batchnorm.bank(layer, "own"):
        assert close(layer(x), 3 * batch_norm(x))
    assert close(layer(x), batch_norm(x))


def test_union_pass_is_the_merge_of_the_halves():
    critic = nn.Sequential(BatchNorm1d(3, momentum=1.0, dtype=torch.float64))
    now, then = data(0, 6, 3), data(3, 10, 3)
    q, q_next = union(critic, now, then)
    merged = Moments.of(now).merge(Moments.of(then))
    assert close(critic[0].running_mean, merged.mean)
    assert close(critic[0].running_var, merged.var(1))
    assert close(torch.cat([q, q_next]), batch_norm(torch.cat([now, then])))


def test_two_passes_leave_out_the_term_between_the_halves():
    layer = BatchNorm1d(3, method="cumulative", dtype=torch.float64)
    now, then = data(0, 8, 3), data(3, 8, 3)
    layer(now)
    layer(then)
    between = (now.mean(0) - then.mean(0)).square() / 4
    within = (now.var(0, correction=0) + then.var(0, correction=0)) / 2
    assert close(layer.running_var * 7 / 8, within)
    assert close(torch.cat([now, then]).var(0, correction=0), within + between)


def test_halves_of_equal_moments_may_as_well_pass_apart():
    x = data(1, 8, 3)
    mirrored = 2 * x.mean(0) - x
    g, zero = randn(8, 3), torch.zeros(8, 3, dtype=torch.float64)
    layer = BatchNorm1d(3, dtype=torch.float64)
    apart = run(layer, x, g)
    both = run(layer, torch.cat([x, mirrored]), torch.cat([g, zero]))
    assert close(both.y[:8], apart.y)
    # What the gradient takes back through the statistics is shared by both halves.
    assert close(both.dx[:8].sum(0) + both.dx[8:].sum(0), apart.dx.sum(0), 1e-11)
    assert close(both.dweight, apart.dweight)


def test_a_mode_a_pass_leaves_the_others_alone():
    model = nn.Sequential(BatchNorm1d(2, dtype=torch.float64), nn.Dropout(0.5))
    x = randn(6, 2)
    with batchnorm.models.mode(model, train=False):
        model(x)
        assert model[1].training
    assert int(model[0].num_batches_tracked) == 0
    model.eval()
    with batchnorm.models.mode(model, train=True):
        assert close(model(x), batch_norm(x))
    assert int(model[0].num_batches_tracked) == 1
    assert not model[0].training
