"""The native passes against the reference in float64: shapes, strides, dtypes, groups, masks, edges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchnorm import kernels
from batchnorm.kernels import native, passes, reference
from tests.fuzzing import fuzz

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")
SETS = native.instruction_sets() or ["none"]
# Of one value, in units of its size.
ROUNDING = {torch.float32: 4e-6, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _best_afterwards():
    yield
    kernels.use()


@st.composite
def calls(draw):
    dims = draw(st.integers(2, 5))
    n, c = draw(st.integers(1, 20)), draw(st.one_of(st.integers(1, 9), st.integers(15, 70)))
    spatial = tuple(draw(st.integers(1, 9)) for _ in range(dims - 2))
    return {
        "shape": (n, c, *spatial),
        "dtype": draw(st.sampled_from(list(ROUNDING))),
        "layout": draw(st.sampled_from(["contiguous", "last", "transposed", "strided", "offset", "expanded"])),
        "groups": draw(st.integers(1, n)),
        "weighing": draw(st.sampled_from([None, "mask", "weights", "by sample"])),
        "mean": draw(st.sampled_from([0.0, 3.0, 1e4])),
        "seed": draw(st.integers(0, 2**20)),
    }


def laid_out(x, layout):
    if layout == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "offset":
        return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)
    return x.contiguous()


def drawn(call):
    generator = torch.Generator().manual_seed(call["seed"])
    shape = call["shape"]
    x, g = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    mean = call["mean"] if call["dtype"] in (torch.float32, torch.float64) else min(call["mean"], 3.0)
    x, g = (x + mean).to(call["dtype"]), g.to(call["dtype"])
    if call["layout"] == "expanded":
        g = g[:1].expand(shape)
    x, g = laid_out(x, call["layout"]), laid_out(g, call["layout"]) if call["layout"] != "expanded" else g
    weight = None
    if call["weighing"] is not None:
        spread = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
        weight = {"mask": spread > 0.4, "weights": (2 * spread - 0.5).clamp_min(0), "by sample": spread[:, :1]}[
            call["weighing"]
        ]
        if call["weighing"] == "by sample":
            weight = weight.reshape(shape[0], -1)[:, :1].reshape(shape[0], *[1] * (len(shape) - 1))
    return x, g, weight


@pytest.mark.parametrize("instructions", SETS)
@fuzz(600)
@given(call=calls())
def test_every_pass_equals_the_reference(instructions, call):
    kernels.use(instructions)
    x, g, weight = drawn(call)
    wide_x, wide_g = x.double(), g.double()
    groups, tolerance = call["groups"], ROUNDING[call["dtype"]]
    got, expected = passes.reduce(x, weight, groups), reference.reduce(wide_x, weight, groups)
    exact = 1e-12 if call["dtype"] == torch.float64 else 3e-6
    scale = expected.mean.abs() + (expected.m2 / expected.count.clamp_min(1)).sqrt() + 1
    assert torch.allclose(got.count, expected.count, rtol=1e-6)
    assert torch.allclose(got.count_squared, expected.count_squared, rtol=1e-6)
    assert ((got.mean - expected.mean).abs() <= exact * scale).all()
    spread = expected.m2 + expected.count * (1e-7 * expected.mean) ** 2 + 1e-6
    assert ((got.m2 - expected.m2).abs() <= 20 * exact * spread).all()
    invstd = (expected.m2 / expected.count.clamp_min(1) + 1e-3).rsqrt()
    shift, u, v = (torch.linspace(-1, 1, invstd.numel(), dtype=torch.float64).view_as(invstd) for _ in range(3))
    vectors = (expected.mean, invstd, shift, weight)
    y, wanted = passes.apply(x, *vectors), reference.apply(wide_x, *vectors)
    assert y.dtype == x.dtype
    assert ((y - wanted).abs() <= tolerance * (wanted.abs() + 10)).all()
    for a, b in zip(
        passes.backward_reduce(g, x, expected.mean, invstd, weight),
        reference.backward_reduce(wide_g, wide_x, expected.mean, invstd, weight),
        strict=True,
    ):
        assert ((a - b).abs() <= 2e-5 * (b.abs() + expected.count.sqrt() * 10 + 10)).all()
    vectors = (expected.mean, invstd, u, v, weight)
    dx, wanted = passes.backward_apply(g, x, *vectors), reference.backward_apply(wide_g, wide_x, *vectors)
    assert ((dx - wanted).abs() <= tolerance * (wanted.abs() + 40)).all()


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("shape", [(2, 20_000), (1, 3, 300_000), (40_000, 2), (3, 1, 1, 1), (2, 5000, 1, 1)], ids=str)
def test_extremes_of_shape(instructions, shape):
    kernels.use(instructions)
    x = torch.randn(shape) * 3 + 2
    got, expected = passes.reduce(x), reference.reduce(x.double())
    assert torch.allclose(got.mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert torch.allclose(got.m2, expected.m2, rtol=3e-6, atol=1e-6)
    y = passes.apply(x, expected.mean, expected.mean * 0 + 0.5, expected.mean * 0)
    assert torch.allclose(
        y.double(), reference.apply(x.double(), *(expected.mean, expected.mean * 0 + 0.5), expected.mean * 0), atol=1e-5
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_channel_and_behind_the_mask(value, last):
    x = torch.randn(8, 20, 5, 5)
    x[3, 7, 2, 2] = value
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    raw = passes.reduce(x)
    finite = torch.isfinite(raw.mean[0]) & torch.isfinite(raw.m2[0])
    assert finite.tolist() == [c != 7 for c in range(20)]
    mask = torch.ones(8, 1, 5, 5, dtype=torch.bool)
    mask[3, 0, 2, 2] = False
    masked, expected = passes.reduce(x, mask), reference.reduce(x.double(), mask)
    assert torch.allclose(masked.mean, expected.mean, atol=1e-6)
    y = passes.apply(x, expected.mean, expected.mean * 0 + 1, expected.mean * 0, mask)
    assert torch.isfinite(y).all()
    assert (y[3, :, 2, 2] == 0).all()


@pytest.mark.parametrize("last", [False, True])
def test_squares_beyond_float_are_summed_in_double(last):
    x = torch.randn(16, 6, 4, 4, dtype=torch.float64) * 1e25
    x = x.float().contiguous(memory_format=torch.channels_last) if last else x.float()
    expected = x.double().var((0, 2, 3), correction=0)
    raw = passes.reduce(x)
    assert torch.allclose(raw.m2[0] / raw.count[0], expected, rtol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, 1e5, 1e6])
def test_the_output_is_exact_at_any_mean_and_never_worse_than_torchs(mean, last):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(32, 8, 40, 40, dtype=torch.float64, generator=generator) + mean).float()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    exact = torch.nn.functional.batch_norm(x.double(), None, None, training=True)
    torchs = (torch.nn.functional.batch_norm(x, None, None, training=True) - exact).abs().max()
    raw = passes.reduce(x)
    y = passes.apply(x, raw.mean, (raw.m2 / raw.count + 1e-5).rsqrt(), torch.zeros_like(raw.mean))
    error = (y - exact).abs().max()
    assert error < 1e-4
    assert error <= torch.clamp(torchs, min=2e-6)


def test_a_far_first_value_does_not_spoil_the_variance():
    x = torch.randn(64, 2, 32, 32)
    x[0] = 3000.0
    got, expected = passes.reduce(x), reference.reduce(x.double())
    assert torch.allclose(got.m2, expected.m2, rtol=1e-6)
    assert torch.allclose(got.mean, expected.mean, rtol=1e-6)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_same_bits_for_any_number_of_threads_and_every_time(dtype, last):
    x, g = (torch.randn(37, 24, 31, 29).to(dtype) + 1 for _ in range(2))
    if last:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    few = torch.randn(4, 2, 300_000).to(dtype)  # fewer channels than threads: split within a channel
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append([])
            for data, grad in ((x, g), (few, few)):
                raw = passes.reduce(data, None, 2)
                invstd = (raw.m2 / raw.count + 1e-5).rsqrt()
                y = passes.apply(data, raw.mean, invstd, invstd)
                sums = passes.backward_reduce(grad, data, raw.mean, invstd)
                dx = passes.backward_apply(grad, data, raw.mean, invstd, *sums)
                found[-1] += [raw.mean, raw.m2, y, *sums, dx]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
