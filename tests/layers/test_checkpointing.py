"""Activation checkpointing: one update, and the gradients of the run without it."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm import MABN, BatchNorm2d, BatchNormError, accumulate, bank, masked, pause
from batchnorm.layers import METHODS
from tests.subjects import Subject


def block(layer):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), layer, nn.ReLU()).double()


def gradients_of(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=generator) * (1 + seed)).requires_grad_()


def step(model, seeds, reentrant):
    """Two forwards, then both backwards; gradients of inputs and parameters."""
    inputs = [batch(seed) for seed in seeds]
    runs = [model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant) for x in inputs]
    for y in runs:
        y.square().mean().backward()
    gradients = [x.grad for x in inputs] + gradients_of(model)
    model.zero_grad()
    return gradients


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "cbn"])
def test_updates_once_and_gradients_are_exact(method, reentrant):
    plain = block(Subject(method, 3))
    saved = copy.deepcopy(plain)
    for seeds in ((1, 2), (3, 4), (5, 6)):
        expected, got = step(plain, seeds, None), step(saved, seeds, reentrant)
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(expected, got, strict=True))
    for (name, a), (_, b) in zip(plain.named_buffers(), saved.named_buffers(), strict=True):
        # Checkpointed, couplings with a memory take the slower spelling, which rounds differently.
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14), name
    assert int(saved[1].layer.num_batches_tracked) == 6


@pytest.mark.parametrize("reentrant", [True, False])
def test_stock_counts_twice(reentrant):
    model = block(nn.BatchNorm2d(3))
    step(model, (1,), reentrant)
    assert int(model[1].num_batches_tracked) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_cross_iteration_says_that_it_cannot_be_recomputed(reentrant):
    with pytest.raises(BatchNormError, match="checkpointing must not wrap"):
        step(block(Subject("cbn", 3)), (1,), reentrant)


def compared(build, enter, seeds, reentrant, x_of=batch):
    """Forwards in contexts, backwards outside, in the other order; checkpointed and not."""
    results = []
    for checkpointed in (False, True):
        model = build()
        inputs, outputs = [], []
        for seed, context in zip(seeds, enter(model), strict=True):
            inputs.append(x_of(seed))
            with context:
                x = inputs[-1]
                outputs.append(checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x))
        for y in reversed(outputs):
            y.square().mean().backward()
        results.append([x.grad for x in inputs] + gradients_of(model) + [b.clone() for b in model.buffers()])
    expected, got = results
    assert len(expected) == len(got)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(expected, got, strict=True))


def masks(seed):
    return torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(seed)) > 0.4


CONTEXTS = {
    "masked": lambda m: [masked(m, masks(0))],
    "weighted": lambda m: [masked(m, weights=torch.arange(1.0, 5))],
    "two masks": lambda m: [masked(m, masks(0)), masked(m, masks(1))],
    "masked and not": lambda m: [masked(m, masks(0)), nullcontext(), masked(m, masks(1))],
    "bank": lambda m: [bank(m, "b", own_affine=True)],
    "two banks": lambda m: [bank(m, "b", own_affine=True), bank(m, "c", own_affine=True), nullcontext()],
    "accumulate": lambda m: [accumulate(m, renorm=True), nullcontext()],
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["batchnorm", "renorm", "population", "mabn"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_that_is_over_when_backward_runs(context, method, reentrant):
    if context == "accumulate" and method == "mabn":
        pytest.skip("mabn keeps a memory of every backward and refuses to accumulate")

    def build():
        torch.manual_seed(0)
        layer = BatchNorm2d(3, method=method)
        return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), layer, nn.ReLU()).double()

    enter = CONTEXTS[context]
    seeds = range(1, 1 + len(enter(build())))

    def with_affine_of_their_own(model):
        contexts = enter(model)
        for name in ("b", "c"):
            if "bank" in context:
                with bank(model, name, own_affine=True), torch.no_grad():
                    getattr(model[1], f"bank_{name}_weight").fill_(3.0 if name == "b" else 0.5)
        return contexts

    compared(build, with_affine_of_their_own, seeds, reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_required_mask_reaches_the_recomputed_forward(reentrant):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), BatchNorm2d(3, method="masked")).double()

    compared(build, lambda m: [masked(m, masks(0))], (1,), reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_pause_that_is_over_still_keeps_the_backward_windows(reentrant):
    layer = BatchNorm2d(2, method="mabn", coupling=MABN(window=3, warmup=0)).double()
    with pause(layer):
        y = checkpoint(layer, batch(1), use_reentrant=reentrant)
    before = layer.backward_window.clone()
    y.square().mean().backward()
    assert torch.equal(layer.backward_window, before)
    assert int(layer.backward_window_seen) == 0


def test_an_ordinary_step_keeps_no_record():
    layer = BatchNorm2d(2, method="renorm")
    layer(torch.randn(4, 2, 3, 3).requires_grad_()).sum().backward()
    assert "_record" not in layer.__dict__


def test_more_forwards_than_the_record_is_long_fall_back_on_the_present_context():
    layer = BatchNorm2d(2, affine=False).double()
    inputs = [batch(seed) for seed in range(1, 40)]
    outputs = []
    for i, x in enumerate(inputs):
        with masked(layer, masks(i)) if i % 2 else nullcontext():
            outputs.append(checkpoint(layer, x, use_reentrant=True))
    outputs[0].square().mean().backward()  # the oldest ran in no context, and that is the present one
    twin = inputs[0].detach().requires_grad_()
    BatchNorm2d(2, affine=False).double()(twin).square().mean().backward()
    assert torch.allclose(inputs[0].grad, twin.grad, rtol=1e-10)
