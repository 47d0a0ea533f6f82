"""Methods with a memory of past batches: the fused calls against the slower spelling, and what declines."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm
from batchnorm import BatchNorm2d, BatchNormError, kernels
from batchnorm.kernels import native
from batchnorm.layers import MABN, Ghost, Policy, Pooled, PowerNorm, Renorm, UnifiedNorm, Window
from batchnorm.layers.step import Native
from tests.methods.plain import affine, close, data, randn

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels are not built")

CHOICES = {
    "pooled": {"method": "pooled"},
    "pooled, biased": {"estimator": Pooled(correction=0)},
    "pooled, renorm": {"estimator": Pooled(), "coupling": Renorm()},
    "window": {"estimator": Window(3)},
    "window of all values": {"estimator": Window(3, total=True)},
    "window of one": {"estimator": Window(1, correction=0)},
    "diminishing": {"method": "diminishing", "estimator": batchnorm.layers.Diminishing(0.7, 0.8)},
    "mabn": {"method": "mabn", "coupling": MABN(3, 1.1, 1, 3)},
    "power": {"method": "power", "coupling": PowerNorm(warmup=2)},
    "unified": {"method": "unified", "coupling": UnifiedNorm(3, 1.2, 1)},
    "unified of one": {"method": "unified", "coupling": UnifiedNorm(1, 5.0, 1)},
}
EXTENTS = {
    "batch": ({}, {}),
    "ghost": ({"extent": Ghost(3)}, {}),
    "masked": ({}, {"mask": torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(0)) > 0.4}),
    "weighted": ({"extent": Ghost(3)}, {"weights": torch.arange(7.0) + 0.5}),
}


class Watching(TorchDispatchMode):
    """A mode that sees every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def pair(dtype=torch.float64, **choices):
    layer = affine(BatchNorm2d(3, dtype=dtype, **choices))
    return layer, copy.deepcopy(layer)


def stepped(layer, x, g, fast, **given):
    """One step natively or in the slower spelling; output and gradients."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    if not fast:
        kernels.use("reference")
    try:
        y = layer(x, **given)
        y.backward(g)
    finally:
        kernels.use()
    assert (isinstance(getattr(y.grad_fn, "call", None), Native)) == fast
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


def agree(one, two, tolerance=1e-9):
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("choice", CHOICES)
def test_seven_steps_are_those_of_the_slower_spelling(choice, extent):
    extra, given = EXTENTS[extent]
    one, two = pair(**{**CHOICES[choice], **extra})
    for step in range(7):
        x, g = data(step, 7, 3, 2, 3), randn(7, 3, 2, 3, seed=step + 20)
        got, expected = (stepped(layer, x, g, fast, **given) for layer, fast in ((one, True), (two, False)))
        assert all(close(a, b, 1e-9) for a, b in zip(got, expected, strict=True)), step
    agree(one, two)


@pytest.mark.parametrize("choice", ["pooled", "window", "mabn", "power", "unified"])
def test_float32_buffers_hold_what_the_slower_spelling_writes(choice):
    one, two = pair(torch.float32, **CHOICES[choice])
    for step in range(6):
        x, g = data(step, 7, 3, 2, 3).float(), randn(7, 3, 2, 3, seed=step).float()
        got, expected = (stepped(layer, x, g, fast) for layer, fast in ((one, True), (two, False)))
        assert all(close(a, b, 1e-4) for a, b in zip(got, expected, strict=True)), step
    agree(one, two, 1e-5)


@pytest.mark.parametrize("choice", ["pooled", "window", "mabn", "power", "unified"])
def test_a_batch_that_is_not_finite_changes_nothing(choice):
    layer, _ = pair(**CHOICES[choice])
    for step in range(4):
        stepped(layer, data(step, 7, 3, 2, 3), randn(7, 3, 2, 3), True)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = data(5, 7, 3, 2, 3)
    x[2, 1] = torch.nan
    stepped(layer, x, randn(7, 3, 2, 3), True)
    assert int(layer.num_batches_skipped) == 1
    for name, buffer in layer.named_buffers():
        assert name == "num_batches_skipped" or torch.equal(buffer, before[name]), name


def test_a_batch_that_is_not_finite_raises_where_asked():
    layer, _ = pair(method="pooled", policy=Policy(nonfinite="raise"))
    with pytest.raises(BatchNormError, match="must be finite"):
        layer(torch.full((2, 3, 2, 2), torch.inf, dtype=torch.float64))
    assert float(layer.pooled_count) == 0


@pytest.mark.parametrize("choice", ["mabn", "power", "unified"])
def test_banks_and_pauses_that_are_over_when_backward_runs(choice):
    layer, _ = pair(**CHOICES[choice])
    with batchnorm.bank(layer, "b"):
        for step in range(3):
            stepped(layer, data(step, 7, 3, 2, 3), randn(7, 3, 2, 3), True)
        y = layer(data(4, 7, 3, 2, 3))
    own = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    y.backward(randn(7, 3, 2, 3))
    changed = {name for name, buffer in layer.named_buffers() if not torch.equal(buffer, own[name])}
    assert changed
    assert all(name.startswith("bank_b_backward") for name in changed)
    with batchnorm.pause(layer):
        y = layer(data(4, 7, 3, 2, 3))
    own = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    y.backward(randn(7, 3, 2, 3))
    assert all(torch.equal(buffer, own[name]) for name, buffer in layer.named_buffers())


@pytest.mark.parametrize("choice", ["mabn", "power", "unified"])
def test_gradients_that_are_watched_follow_the_same_rule(choice):
    one, two = pair(**CHOICES[choice])
    for step in range(5):
        x, g = data(step, 7, 3, 2, 3), randn(7, 3, 2, 3, seed=step)
        expected = stepped(one, x, g, True)
        a = x.clone().requires_grad_()
        y = two(a)
        with Watching():
            two.zero_grad()
            y.backward(g)
        assert close(a.grad, expected[1], 1e-9)
    agree(one, two)


def test_a_second_derivative_is_refused():
    layer, _ = pair(**CHOICES["mabn"])
    x = data(0, 7, 3, 2, 3).requires_grad_()
    with pytest.raises(BatchNormError, match="create_graph must be False"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)


def test_a_window_of_another_length_is_read_to_its_end_and_no_further():
    layer, _ = pair(**CHOICES["mabn"])
    layer.forward_window = torch.zeros(7, 3, dtype=torch.float64)
    assert torch.isfinite(layer(data(0, 7, 3, 2, 3))).all()
    assert int((layer.forward_window != 0).any(1).sum()) == 1


def test_a_momentum_of_zero_pauses_the_pool():
    layer, _ = pair(method="pooled")
    layer(data(0, 7, 3, 2, 3))
    before = layer.running_mean.clone()
    layer.momentum = 0.0
    layer(data(1, 7, 3, 2, 3))
    assert torch.equal(layer.running_mean, before)
