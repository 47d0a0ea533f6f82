import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import batchnorm
from batchnorm.layers import Moments
from tests.fuzzing import fuzz


def reference(x, axis, weight=None):
    """count, mean, m2 of a numpy array per channel, in float64."""
    rows = np.moveaxis(np.asarray(x, dtype=np.float64), axis, 0)
    rows = rows.reshape(rows.shape[0], -1)
    w = np.ones(rows.shape[1]) if weight is None else np.asarray(weight, dtype=np.float64).reshape(-1)
    mean = (rows * w).sum(1) / w.sum()
    return w.sum(), mean, (w * (rows - mean[:, None]) ** 2).sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((7, 3), 1), ((5, 4, 6), 2), ((2, 3, 4, 5), -3), ((2, 3, 2, 3, 4), 0)])
def test_any_rank_and_axis(shape, axis, dtype):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 50).to(dtype)
    got = Moments.of(x, channel_axis=axis)
    count, mean, m2 = reference(x.double().numpy(), axis)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert (got.count == count).all()
    assert np.allclose(got.mean, mean, rtol=tolerance)
    assert np.allclose(got.m2, m2, rtol=tolerance)


def test_float32_with_a_mean_of_1e6():
    x = torch.randn(64, 3, 20, generator=torch.Generator().manual_seed(0)) + 1e6
    got = Moments.of(x)
    assert np.allclose(got.var(), x.double().var((0, 2), correction=0), rtol=1e-6)


def test_mask_selects_and_nan_in_padding_stays_there():
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    poisoned = torch.where(mask[:, None], x, torch.nan)
    count, mean, m2 = reference(x.movedim(1, 2)[mask].numpy(), 1)
    got = Moments.of(poisoned, mask=mask)
    assert (got.count == count).all()
    assert np.allclose(got.mean, mean, rtol=1e-12)
    assert np.allclose(got.m2, m2, rtol=1e-12)


def test_sample_weights_and_effective_count():
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    count, mean, m2 = reference(x, 1, weight[:, None].expand(6, 4))
    got = Moments.of(x, weight=weight)
    assert np.allclose(got.count, count)
    assert np.allclose(got.mean, mean)
    assert np.allclose(got.m2, m2)
    expected = (4 * weight.sum()) ** 2 / (4 * weight.square().sum())
    assert np.allclose(got.effective_count, expected)


def test_groups_are_even_and_pool_to_the_whole():
    x = torch.randn(10, 3, 4, dtype=torch.float64)
    got = Moments.of(x, groups=4)
    assert got.count[:, 0].tolist() == [12, 12, 8, 8]
    for row, part in enumerate(torch.split(x, [3, 3, 2, 2])):
        assert np.allclose(got.mean[row], part.mean((0, 2)))
        assert np.allclose(got.var()[row], part.var((0, 2), correction=0))
    whole, pooled = Moments.of(x), got.pool()
    assert np.allclose(pooled.mean, whole.mean, rtol=1e-13)
    assert np.allclose(pooled.m2, whole.m2, rtol=1e-13)


@fuzz(500)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(-1e6, 1e6))
def test_merging_any_split_equals_the_whole(seed, sizes, mean):
    x = torch.randn(sum(sizes) + 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + mean
    merged = Moments.of(x[:1])
    for part in torch.split(x[1:], sizes):
        merged = merged.merge(Moments.of(part))
    whole = Moments.of(x)
    assert np.allclose(merged.count, whole.count)
    assert np.allclose(merged.mean, whole.mean, rtol=1e-13, atol=1e-13)
    assert np.allclose(merged.m2, whole.m2, rtol=1e-9, atol=1e-9)


def test_var_says_nan_where_there_are_too_few_values():
    one = Moments.of(torch.tensor([[3.0]]))
    assert one.var(0).tolist() == [0.0]
    assert one.var(1).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": torch.zeros(3, 2, dtype=torch.long)}, "x must be a floating-point tensor; it was torch.int64"),
        ({"x": torch.zeros(3)}, "at least two axes"),
        ({"channel_axis": 5}, "channel_axis must be an axis"),
        ({"mask": torch.ones(3)}, "boolean"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, "of a shape that begins"),
        ({"groups": 4}, "groups must be between 1 and the number of samples; it was 4"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(batchnorm.BatchNormError, match=sentence):
        Moments.of(**{"x": torch.zeros(3, 2), **arguments})
