"""Activation checkpointing: one update, and the gradients of the run without it."""

import copy
import functools
from contextlib import nullcontext
from dataclasses import dataclass

import numpy
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormError, accumulate, bank, kernels, masked, pause
from batchnorm.layers import MABN, METHODS, Estimator, Ghost, Move, Policy, Renorm
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
        pytest.skip("every backward of mabn updates its running averages, so it refuses to accumulate")

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


def on_output(forward):
    y = torch.ones(4, 3, requires_grad=True) * 2
    y.register_hook(forward)
    return y.sum()


def on_module(register):
    def run(forward):
        module = nn.Linear(3, 3)
        getattr(module, register)(forward)
        return module(torch.ones(4, 3, requires_grad=True)).sum()

    return run


def on_parameter(forward):
    module = nn.Linear(3, 3)
    module.weight.register_post_accumulate_grad_hook(forward)
    return module(torch.ones(4, 3)).sum()


def on_node(register):
    def run(forward):
        y = (torch.ones(4, 3, requires_grad=True) * 2).sum()
        getattr(y.grad_fn, register)(forward)
        return y

    return run


def inside_a_checkpoint(reentrant):
    def run(forward):
        module = nn.Linear(3, 3)
        module.register_full_backward_hook(forward)
        return checkpoint(module, torch.ones(4, 3, requires_grad=True), use_reentrant=reentrant).sum()

    return run


HOOKS = {
    "tensor": on_output,
    "module": on_module("register_full_backward_hook"),
    "module before": on_module("register_full_backward_pre_hook"),
    "parameter": on_parameter,
    "node": on_node("register_hook"),
    "node before": on_node("register_prehook"),
    "inside a checkpoint": inside_a_checkpoint(False),
    "inside a reentrant checkpoint": inside_a_checkpoint(True),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", HOOKS)
def test_a_forward_inside_a_gradient_hook_moves_the_statistics(name, native):
    layer, x = BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    outside = copy.deepcopy(layer)
    if not native:
        kernels.use("reference")
    try:
        outside(x)
        HOOKS[name](lambda *_: (layer(x), None)[1]).backward()
    finally:
        kernels.use()
    assert int(layer.num_batches_tracked) == 1
    assert torch.equal(layer.running_var, outside.running_var)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_inside_a_hook_moves_the_statistics_once(reentrant):
    layer = BatchNorm2d(3)

    def hook(_):
        with torch.enable_grad():
            x = torch.randn(4, 3, 2, 2, requires_grad=True)
            checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()

    on_output(hook).backward()
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_nested_checkpoints_move_once(outer, inner):
    layers = BatchNorm2d(3), BatchNorm2d(3)

    def both(x):
        return layers[1](checkpoint(layers[0], x, use_reentrant=inner))

    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    checkpoint(both, x, use_reentrant=outer).square().sum().backward()
    assert [int(layer.num_batches_tracked) for layer in layers] == [1, 1]


def test_a_hook_of_a_gradient_inside_a_checkpoint_is_recomputed_too():
    layer, other, x = BatchNorm2d(3), BatchNorm2d(3), torch.randn(4, 3, 2, 2, requires_grad=True)

    def penalised(x):
        y = layer(x) * 1
        hook = y.register_hook(lambda _: (other(x.detach()), None)[1])
        (g,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        hook.remove()
        return y * g.norm()

    checkpoint(penalised, x, use_reentrant=False).sum().backward()
    assert (int(layer.num_batches_tracked), int(other.num_batches_tracked)) == (1, 1)


@pytest.mark.parametrize("once", [True, False])
def test_a_function_that_recomputes_in_its_own_backward_moves_once(once):
    layer = BatchNorm2d(3)

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            with torch.no_grad():
                return layer(x)

        @staticmethod
        def backward(ctx, g):
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                layer(x).backward(g)
            return x.grad

    if once:
        Recomputed.backward = staticmethod(once_differentiable(Recomputed.backward))
    Recomputed.apply(torch.randn(4, 3, 2, 2, requires_grad=True)).square().sum().backward()
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("policy", ["MUST_SAVE", "PREFER_RECOMPUTE"])
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("cbn", "masked")])
def test_selective_checkpoints_hand_back_what_they_kept(method, policy):
    # The mask of `masked` is filled in place here, which such a checkpoint refuses for every module.
    plain = nn.Sequential(nn.Linear(3, 3), Subject(method, 3, rank=2), nn.Linear(3, 3)).double()
    saved = copy.deepcopy(plain)
    contexts = functools.partial(
        create_selective_checkpoint_contexts, lambda *_, **__: getattr(CheckpointPolicy, policy)
    )
    for _ in range(3):
        x = torch.randn(8, 3, dtype=torch.float64) + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(a).square().sum().backward()
        checkpoint(saved, b, use_reentrant=False, context_fn=contexts).square().sum().backward()
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-11)
    for (name, a), (_, b) in zip(plain.named_buffers(), saved.named_buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), name


# What leaves groups, or the whole batch, with one value.
FEW = {
    "a mask over groups": {"extent": Ghost(2)},
    "groups of one": {"extent": Ghost(1)},
    "a stream of groups of one": {"extent": Ghost(1, update="sequential")},
    "a stream": {"extent": Ghost(2, update="sequential")},
    "a mask over the batch": {},
    "a batch of one": {},
    "debiased": {"method": "debiased", "extent": Ghost(2)},
    "window": {"method": "window", "extent": Ghost(2)},
    "renorm": {"method": "renorm", "extent": Ghost(2)},
    "mabn": {"method": "mabn", "extent": Ghost(2)},
    "a momentum that is a tensor": {"momentum": torch.tensor(0.5), "extent": Ghost(2)},
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("case", FEW)
def test_few_values_meet_the_statistics_of_their_first_forward(case, backend, reentrant):
    results = []
    for checkpointed in (False, True):
        policy = Policy(too_few="population")
        layer = BatchNorm1d(2, policy=policy, activation="gelu", dtype=torch.float64, **FEW[case])
        mask = torch.tensor([True, True, True, False])
        if "over the batch" in case:
            mask = torch.tensor([False, True, False, False])
        # The last batch moves the statistics on before either backward runs.
        calls = [(1, mask), (2, mask), (3, torch.ones(4, dtype=torch.bool))]
        inputs, outputs = [], []
        kernels.use(backend)
        try:
            for seed, given in calls:
                x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + seed
                inputs.append(x.requires_grad_())
                x, kwargs = (x[:1], {}) if case == "a batch of one" and given is mask else (x, {"mask": given})
                run = functools.partial(layer, **kwargs)
                outputs.append(checkpoint(run, x, use_reentrant=reentrant) if checkpointed else run(x))
            for y in reversed(outputs):
                y.square().sum().backward()
        finally:
            kernels.use()
        results.append([x.grad for x in inputs] + gradients_of(layer) + [b.clone() for b in layer.buffers()])
    assert results[0][0].any()
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*results, strict=True))


@dataclass(frozen=True)
class Clipped(Estimator):
    """A gain that goes by the batch, so that it is known after the reduction."""

    def move(self, state, now):
        a = 0.1 / (1 + (now.batch.mean - state.mean).abs())
        return Move(a, 1 - a, a)


@dataclass(frozen=True)
class PerChannel(Estimator):
    """A gain for each channel."""

    def move(self, state, now):
        a = torch.linspace(0.1, 0.4, len(state.mean), dtype=state.mean.dtype)
        return Move(a, 1 - a, a)


MOVES = {
    "a tensor": {"momentum": torch.tensor(0.1)},
    "a tensor of one value": {"momentum": torch.tensor([0.1])},
    "numpy": {"momentum": numpy.float64(0.1)},
    "numpy, narrow": {"momentum": numpy.float32(0.1)},
    "a schedule": {"momentum": lambda step: torch.tensor(1.0) / step},
    "by the batch": {"estimator": Clipped()},
    "by channel": {"estimator": PerChannel()},
    "cumulative": {"momentum": None},
    "window": {"method": "window"},
    "pooled": {"method": "pooled"},
}


@pytest.mark.parametrize("around", ["nothing", "accumulate", "pause", "masked"])
@pytest.mark.parametrize("more", [{}, {"activation": "relu"}, {"extent": Ghost(2)}, {"method": "renorm"}])
@pytest.mark.parametrize("case", MOVES)
def test_a_recomputed_forward_keeps_what_its_first_did(case, more, around):
    """Whatever the statistics move by: torch refuses a recomputation that saves other tensors."""
    if "method" in more and "method" in MOVES[case]:
        more = {"coupling": Renorm()}
    contexts = {
        "nothing": nullcontext,
        "accumulate": accumulate,
        "pause": pause,
        "masked": functools.partial(masked, mask=torch.arange(8) < 6),
    }
    results = []
    for checkpointed in (False, True):
        layer = BatchNorm1d(3, dtype=torch.float64, **MOVES[case], **more)
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2):
            with contexts[around](layer):
                y = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
            y.square().sum().backward()
        results.append([x.grad, *gradients_of(layer), *(b.clone() for b in layer.buffers())])
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*results, strict=True))
