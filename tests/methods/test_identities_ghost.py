"""Ghost batch norm (Hoffer et al. 2017), one batch over one process, and merging moments."""

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d, BatchNorm2d
from batchnorm.layers import Ghost, Moments
from tests.methods.plain import affine, close, data, randn, run, same

SHAPE = (8, 3, 4, 5)


def layers(extent=None, **options):
    return affine(BatchNorm2d(3, extent=extent, dtype=torch.float64, **options))


@pytest.mark.parametrize("size", [8, 5, 100])
def test_one_group_is_batch_norm(size):
    ghost, plain = layers(Ghost(size)), layers()
    for step in range(3):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step)
        assert same(run(ghost, x, g), run(plain, x, g))
    assert close(ghost.running_var, plain.running_var)


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(8, 2, [2] * 4), (8, 3, [4, 4]), (7, 2, [3, 2, 2]), (11, 3, [4, 4, 3])]
)
@pytest.mark.parametrize("update", ["pooled", "sequential"])
def test_groups_are_batches_of_their_own(n, size, sizes, update):
    x, g = data(1, n, *SHAPE[1:]), randn(n, *SHAPE[1:], seed=1)
    got = run(layers(Ghost(size, update)), x, g)
    parts = [run(layers(), *pair) for pair in zip(x.split(sizes), g.split(sizes), strict=True)]
    assert close(got.y, torch.cat([part.y for part in parts]))
    assert close(got.dx, torch.cat([part.dx for part in parts]))
    assert close(got.dweight, sum(part.dweight for part in parts))


def test_pooled_update_is_that_of_batch_norm():
    ghost, plain = layers(Ghost(2)), layers()
    for step in range(3):
        ghost(data(step, *SHAPE))
        plain(data(step, *SHAPE))
    assert close(ghost.running_mean, plain.running_mean)
    assert close(ghost.running_var, plain.running_var)


@pytest.mark.parametrize("eta", [0.1, 0.4])
def test_sequential_update_has_a_closed_form(eta):
    """mu = (1 - eta)^k mu + sum (1 - eta)^(k - i) eta mu_i: k groups weigh 1 - (1 - eta)^k together."""
    layer = layers(Ghost(2, "sequential"), momentum=eta)
    x = data(1, *SHAPE)
    layer(x)
    k = 4
    weights = [(1 - eta) ** (k - i) * eta for i in range(1, k + 1)]
    groups = x.split(2)
    mean = sum(w * group.mean((0, 2, 3)) for w, group in zip(weights, groups, strict=True))
    var = sum(w * group.var((0, 2, 3), correction=1) for w, group in zip(weights, groups, strict=True))
    assert close(layer.running_mean, mean)
    assert close(layer.running_var, var + (1 - eta) ** k)
    assert abs(sum(weights) - (1 - (1 - eta) ** k)) < 1e-12
    assert int(layer.num_batches_tracked) == 1


def test_inference_does_not_know_about_groups():
    layer = layers(Ghost(4))
    layer(data(1, *SHAPE))
    x = data(2, *SHAPE)
    whole = layer.eval()(x)
    for size in (1, 3, 8):
        assert close(torch.cat([layer(part) for part in x.split(size)]), whole)


def test_sync_in_one_process_is_batch_norm():
    sync, plain = layers(method="sync"), layers()
    for step in range(3):
        x, g = data(step, *SHAPE), randn(*SHAPE, seed=step)
        assert same(run(sync, x, g), run(plain, x, g))
    assert close(sync.running_var, plain.running_var)


@pytest.mark.parametrize("sizes", [(3, 7), (1, 9), (10, 0), (0, 10)], ids=str)
def test_count_weighted_merge_is_the_whole(sizes):
    x = data(3, 10, 2)
    a, b = (Moments.of(part) for part in x.split(sizes))
    merged, whole = a.merge(b), Moments.of(x)
    assert close(merged.mean, whole.mean)
    assert close(merged.var(0), x.var(0, correction=0))
    assert close(merged.count, whole.count)


def test_equal_weights_on_unequal_halves_are_wrong():
    x = torch.cat([randn(3, 2), 5 + randn(7, 2)])
    equal = (x[:3].mean(0) + x[3:].mean(0)) / 2
    assert (equal - x.mean(0)).abs().min() > 0.5
    layer = BatchNorm1d(2, momentum=1.0, dtype=torch.float64)
    layer(x)
    assert close(layer.running_mean, x.mean(0))


def test_ghost_size_one_needs_more_than_one_value():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNorm1d(2, extent=Ghost(1))(torch.randn(4, 2))
    x = randn(4, 2, 6)
    instance = nn.InstanceNorm1d(2)(x)
    assert close(BatchNorm1d(2, extent=Ghost(1), dtype=torch.float64)(x), instance)
