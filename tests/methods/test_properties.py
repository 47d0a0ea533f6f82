"""Moments, ghost groups and channel axes over shapes, ranks, masks and weights that hypothesis makes up."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from batchnorm import BatchNorm
from batchnorm.layers import Ghost, Moments
from tests.fuzzing import fuzz
from tests.methods.plain import batch_norm, close, randn, run

several = fuzz(600)
sizes = st.lists(st.integers(1, 4), min_size=0, max_size=3)


@st.composite
def inputs(draw):
    """An input with its channel axis, and a seed."""
    shape = [draw(st.integers(1, 6)), draw(st.integers(1, 3)), *draw(sizes)]
    axis = draw(st.integers(0, len(shape) - 1))
    channels = shape.pop(1)
    shape.insert(axis, channels)
    seed = draw(st.integers(0, 10**6))
    return randn(*shape, seed=seed) * 3 + 2, axis, seed


def values(x, axis):
    """`(values, C)` and the shape that masks have."""
    moved = x.movedim(axis, -1)
    return moved.reshape(-1, moved.shape[-1]), moved.shape[:-1]


def weights_for(shape, seed, deep):
    """Weights of 0, 1, 2 or 3 over the first `deep` axes."""
    return torch.randint(0, 4, shape[:deep], generator=torch.Generator().manual_seed(seed)).double()


@several
@given(inputs(), st.integers(1, 4))
def test_masked_moments_are_those_of_the_selected_values(made, deep):
    x, axis, seed = made
    flat, shape = values(x, axis)
    mask = weights_for(shape, seed, min(deep, len(shape))) > 1
    full = mask.reshape(*mask.shape, *[1] * (len(shape) - mask.dim())).expand(shape).reshape(-1)
    found = Moments.of(x, channel_axis=axis, mask=mask)
    kept = flat[full]
    assert close(found.count, torch.full_like(found.count, len(kept)))
    if len(kept):
        assert close(found.mean, kept.mean(0))
        assert close(found.m2, (kept - kept.mean(0)).square().sum(0), 1e-10)
        assert close(found.effective_count, found.count)
    if len(kept) > 1:
        assert close(found.var(1), kept.var(0, correction=1), 1e-10)


@several
@given(inputs(), st.integers(1, 4))
def test_weighted_moments_are_those_of_repeated_values(made, deep):
    x, axis, seed = made
    flat, shape = values(x, axis)
    weight = weights_for(shape, seed, min(deep, len(shape)))
    full = weight.reshape(*weight.shape, *[1] * (len(shape) - weight.dim())).expand(shape).reshape(-1)
    found = Moments.of(x, channel_axis=axis, weight=weight)
    repeated = flat.repeat_interleave(full.long(), 0)
    assert close(found.count, torch.full_like(found.count, len(repeated)))
    if len(repeated):
        assert close(found.mean, repeated.mean(0))
        assert close(found.m2, (repeated - repeated.mean(0)).square().sum(0), 1e-10)
        kish = full.sum().square() / full.square().sum()
        assert close(found.effective_count, kish.expand(x.shape[axis]))


@several
@given(inputs(), st.integers(1, 6), st.integers(0, 10**6))
def test_groups_pool_and_merge_to_the_whole_in_any_order(made, groups, order):
    x, axis, _ = made
    samples = x.movedim(axis, 1).shape[0]
    groups = min(groups, samples)
    apart, whole = Moments.of(x, channel_axis=axis, groups=groups), Moments.of(x, channel_axis=axis)
    counts = apart.count[:, 0]
    assert counts.max() - counts.min() <= x.numel() / x.shape[axis] / samples
    pooled = apart.pool()
    rows = torch.randperm(groups, generator=torch.Generator().manual_seed(order)).tolist()
    merged = apart.row(rows[0])
    for row in rows[1:]:
        merged = merged.merge(apart.row(row))
    for found in (pooled, merged):
        assert close(found.count, whole.count)
        assert close(found.mean, whole.mean)
        assert close(found.m2, whole.m2, 1e-10)


@several
@given(inputs())
def test_layer_of_any_rank_and_channel_axis_is_that_of_the_moved_data(made):
    x, axis, seed = made
    channels = x.shape[axis]
    layer = BatchNorm(channels, channel_axis=axis, momentum=1.0, dtype=torch.float64)
    moved = x.movedim(axis, 1)
    if moved.numel() // channels < 2:
        return
    g = randn(*x.shape, seed=seed + 1)
    plain = BatchNorm(channels, momentum=1.0, dtype=torch.float64)
    got, expected = run(layer, x, g), run(plain, moved, g.movedim(axis, 1))
    assert close(got.y, batch_norm(moved).movedim(1, axis))
    assert close(got.dx, expected.dx.movedim(1, axis))
    assert close(got.dweight, expected.dweight)
    assert close(layer.running_mean, values(x, axis)[0].mean(0))
    negative = BatchNorm(channels, channel_axis=axis - x.dim(), dtype=torch.float64)
    assert torch.equal(run(negative, x, g).y, got.y)


@several
@given(inputs(), st.integers(1, 5))
def test_ghost_groups_of_any_size_are_even_and_normalise_apart(made, size):
    x, axis, seed = made
    moved = x.movedim(axis, 1)
    n = moved.shape[0]
    groups = max(1, n // size)
    parts = moved.tensor_split(groups)
    assert min(len(p) for p in parts) >= min(size, n)
    if min(p.numel() // p.shape[1] for p in parts) < 2:
        return
    layer = BatchNorm(moved.shape[1], channel_axis=axis, extent=Ghost(size), dtype=torch.float64)
    y = layer(x)
    assert close(y.movedim(axis, 1), torch.cat([batch_norm(part) for part in parts]))
    assert close(layer.running_mean, 0.1 * values(x, axis)[0].mean(0))
    assert seed >= 0
