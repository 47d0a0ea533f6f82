"""The layers against torch's: the same numbers, keys and errors, and the differences on purpose."""

import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.layers import METHODS, Policy
from tests.subjects import EXACT, INEXACT, Subject

PAIRS = {
    (7, 4): (nn.BatchNorm1d, batchnorm.BatchNorm1d),
    (5, 4, 6): (nn.BatchNorm1d, batchnorm.BatchNorm1d),
    (3, 4, 5, 6): (nn.BatchNorm2d, batchnorm.BatchNorm2d),
    (2, 4, 3, 2, 3): (nn.BatchNorm3d, batchnorm.BatchNorm3d),
}
FORMS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
]


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(a, b, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", PAIRS, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_numbers_are_torchs(shape, form, dtype, last):
    theirs, ours = (cls(4, dtype=dtype, **form) for cls in PAIRS[shape])
    if theirs.weight is not None:
        with torch.no_grad():
            theirs.weight.copy_(randn(4, dtype=dtype, seed=9))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for step in range(4):
        theirs.train(step < 3)
        ours.train(step < 3)
        x = randn(*shape, dtype=dtype, seed=step) * 2 + 3
        if last and x.dim() in formats:
            x = x.to(memory_format=formats[x.dim()])
        g = randn(*shape, dtype=dtype, seed=step + 50)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        ys = [layer(x) for layer, x in zip((theirs, ours), xs, strict=True)]
        for y in ys:
            y.backward(g)
        assert close(*ys, dtype)
        assert ys[0].stride() == ys[1].stride()
        assert close(xs[0].grad, xs[1].grad, dtype)
        for name, parameter in theirs.named_parameters():
            assert close(parameter.grad, getattr(ours, name).grad, dtype)
    expected = theirs.state_dict()
    assert list(expected) == list(ours.state_dict())
    assert all(close(expected[k].double(), ours.state_dict()[k].double(), dtype) for k in expected)


# The others hold something constant to the gradient: against plain references in tests/methods.
@pytest.mark.parametrize("method", sorted(set(EXACT) - {"cbn", "renorm", "diminishing"}))
def test_first_and_second_derivatives(method):
    subject = Subject(method, 2, dtype=torch.float64)
    subject(randn(3, 2, 2, 2, seed=5) * 3)
    names = ["layer.weight", "layer.bias"]

    def forward(x, *affine):
        return torch.func.functional_call(copy.deepcopy(subject), dict(zip(names, affine, strict=True)), (x,))

    inputs = (randn(3, 2, 2, 2).requires_grad_(), subject.layer.weight, subject.layer.bias)
    assert torch.autograd.gradcheck(forward, inputs)
    assert torch.autograd.gradgradcheck(forward, inputs)


@pytest.mark.parametrize("method", INEXACT)
def test_a_backward_with_a_memory_has_no_second_derivative(method):
    x = randn(3, 2, 2, 2).requires_grad_()
    y = Subject(method, 2, dtype=torch.float64)(x)
    with pytest.raises(batchnorm.BatchNormError, match="create_graph must be False"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("method", ["batchnorm", "population"])
def test_a_large_mean_costs_no_digits(method):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = (randn(32, 8, 14, 14, dtype=torch.float32) + 1e5).to(memory_format=memory_format)
        reference = nn.BatchNorm2d(8).double()(x.double())
        ours = batchnorm.BatchNorm2d(8, method=method, momentum=1.0)(x)
        assert (ours - reference).abs().max() < 1e-4
        assert (nn.BatchNorm2d(8)(x) - reference).abs().max() > 1e-3


def test_one_value_per_channel_names_the_layer():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(batchnorm.BatchNorm1d(3)))
    with pytest.raises(batchnorm.BatchNormError, match=r"Expected more than 1 value.*layer '1\.0'"):
        model(torch.zeros(1, 3))
    lenient = batchnorm.BatchNorm1d(3, policy=Policy(too_few="population"))
    lenient.running_mean.fill_(1.0)
    assert torch.allclose(lenient(torch.ones(1, 3)), torch.zeros(1, 3))
    assert int(lenient.num_batches_tracked) == 0


def test_an_empty_batch_changes_nothing_where_torch_counts_it():
    for layer, counted in ((nn.BatchNorm1d(3), 1), (batchnorm.BatchNorm1d(3), 0)):
        assert layer(torch.zeros(0, 3)).shape == (0, 3)
        assert int(layer.num_batches_tracked) == counted
        assert (layer.running_var == 1).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_nonfinite_batch_is_skipped_and_counted_where_torch_never_forgets_it(method, bad):
    x = randn(8, 3, dtype=torch.float32)
    poisoned = x.clone()
    poisoned[5, 1] = bad
    stock, subject = nn.BatchNorm1d(3), Subject(method, 3, rank=2)
    clean = copy.deepcopy(subject)
    for batch in (x, poisoned, x + 1):
        stock(batch)
        subject(batch)
    # Sample by sample there is no batch: what is finite counts.
    kept = torch.cat((x[:5], x[6:])) if method == "online" else None
    for batch in (x, kept, x + 1):
        if batch is not None:
            clean(batch)
    assert not stock.running_mean.isfinite().all()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(subject.layer, name), getattr(clean.layer, name)), name
    assert int(subject.layer.num_batches_skipped) == 1
    assert "num_batches_skipped" not in subject.layer.state_dict()


def test_policies_raise_and_propagate():
    x = torch.full((4, 2), torch.nan)
    with pytest.raises(batchnorm.BatchNormError, match="finite"):
        batchnorm.BatchNorm1d(2, policy=Policy(nonfinite="raise"))(x)
    layer = batchnorm.BatchNorm1d(2, policy=Policy(nonfinite="propagate"))
    layer(x)
    assert layer.running_mean.isnan().all()
    with pytest.raises(batchnorm.BatchNormError, match="'skip', 'raise' or 'propagate'; it was 'hope'"):
        Policy(nonfinite="hope")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_stay_float32_in_low_precision(dtype):
    half = batchnorm.BatchNorm1d(2).to(dtype)
    assigned = batchnorm.BatchNorm1d(2)
    assigned.load_state_dict(nn.BatchNorm1d(2).to(dtype).state_dict(), assign=True)
    cast_from_outside = batchnorm.BatchNorm1d(2)
    cast_from_outside.running_mean.data = cast_from_outside.running_mean.data.to(dtype)
    for layer in (half, assigned, batchnorm.BatchNorm1d(2, dtype=dtype), cast_from_outside):
        layer(randn(8, 2).to(dtype))
        assert layer.running_mean.dtype == torch.float32
        assert layer.eval()(randn(8, 2).to(dtype)).dtype == dtype
    assert batchnorm.BatchNorm1d(2).double().running_mean.dtype == torch.float64


def test_bfloat16_statistics_move_where_torchs_stand_still():
    stock = nn.BatchNorm1d(1, momentum=0.001).bfloat16()
    ours = batchnorm.BatchNorm1d(1, momentum=0.001).bfloat16()
    for layer in (stock, ours):
        layer.running_mean.fill_(10.0)
        for _ in range(500):
            layer(torch.tensor([[11.5], [12.5]], dtype=torch.bfloat16))
    assert float(stock.running_mean) == 10.0
    assert float(ours.running_mean) == pytest.approx(12 - 2 * 0.999**500, abs=1e-3)


def test_copies_pickles_lazy_forms_and_tracing():
    layer = batchnorm.BatchNorm2d(3, method="population")
    x = randn(4, 3, 5, 5, dtype=torch.float32)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), copy.deepcopy(layer)(x))
    lazy = batchnorm.LazyBatchNorm2d(method="pooled", momentum=None)
    assert torch.allclose(lazy(x), nn.BatchNorm2d(3)(x), atol=1e-6)
    assert type(lazy) is batchnorm.BatchNorm2d
    assert float(lazy.pooled_count) == 100
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), layer))
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2
    exported = torch.export.export(nn.Sequential(layer).eval(), (x,))
    assert torch.allclose(exported.module()(x), layer.eval()(x), atol=1e-6)


def test_two_forwards_before_backward_in_both_modes():
    for training in (True, False):
        layer = batchnorm.BatchNorm1d(3).train(training)
        x = randn(6, 3, dtype=torch.float32).requires_grad_()
        first = layer(x).square().sum()
        layer.running_mean.add_(1)  # as DDP's broadcast does
        (first + layer(x).sum()).backward()
        assert x.grad.isfinite().all()
