"""The native kernels inside a compiled graph: the same outputs, gradients and statistics as without a compiler."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.kernels import native
from batchnorm.layers import Coupling, Estimator, Ghost, Move, Numbers, Vectors, traced
from tests.sampling import slow_but

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")
CHOICES = {
    "plain": {},
    "debiased": {"method": "debiased"},
    "cumulative": {"method": "cumulative"},
    "renorm": {"method": "renorm"},
    "population": {"method": "population"},
    "ghost": {"extent": batchnorm.layers.Ghost(4)},
    "activated": {"activation": "leaky_relu"},
    "no bias": {"bias": False},
    "no affine": {"affine": False},
}


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(traced, "_WORTHWHILE", 0)


def operators(compiled_call):
    """The names of the operators that a call ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = compiled_call()
    return result, {event.key for event in profile.key_averages()}


def compare(layer, shape, last, residual, steps=3, backend="inductor"):
    eager, twin = layer, copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for _ in range(steps):
        x, r, g = torch.randn(3, *shape) + 1
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        found = []
        for module, call in ((eager, eager), (twin, compiled)):
            leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
            module.zero_grad()
            y, names = operators(
                lambda leaves=leaves, call=call: call(leaves[0], residual=leaves[1] if residual else None)
            )
            assert ("batchnorm::train" in names) == (call is compiled)
            y.backward(g)
            grads = [p.grad for p in module.parameters()]
            found.append([y.detach(), *(t.grad for t in leaves), *grads, *(b.clone() for b in module.buffers())])
            assert y.stride() == x.stride()
        for a, b in zip(*found, strict=True):
            assert a is b is None or torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5)
    assert int(twin.num_batches_tracked) == steps


def test_a_compiled_step_is_the_eager_one():
    # The C++ compiler behind the default backend takes 20 s; the slow tests run it.
    compare(batchnorm.BatchNorm2d(6), (8, 6, 5, 7), False, False, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_compiles_to_the_operators(choice, residual, last):
    compare(batchnorm.BatchNorm2d(6, **CHOICES[choice]), (8, 6, 5, 7), last, residual)


@pytest.mark.slow
def test_a_network_with_a_moving_batch_size_trains_alike():
    torch.manual_seed(0)
    eager = nn.Sequential(
        nn.Conv2d(3, 8, 3), batchnorm.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), batchnorm.BatchNorm2d(4)
    )
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, dynamic=True)
    data = [torch.randn(n, 3, 9, 9) for n in (6, 9, 6, 12)]
    for module, call in ((eager, eager), (twin, compiled)):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for x in data:
            optimizer.zero_grad()
            call(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(eager.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_paused_layer_moves_nothing_and_a_nan_batch_is_skipped():
    layer = batchnorm.BatchNorm1d(5)
    compiled = torch.compile(layer, fullgraph=True)
    with batchnorm.pause(layer):
        compiled(torch.randn(8, 5))
    assert torch.equal(layer.running_mean, torch.zeros(5))
    assert int(layer.num_batches_tracked) == 0
    bad = torch.randn(8, 5)
    bad[0, 2] = float("nan")
    compiled(bad)
    assert torch.equal(layer.running_mean, torch.zeros(5))
    assert int(layer.num_batches_skipped) == 1


def test_an_exported_graph_holds_standard_operations_alone():
    exported = torch.export.export(batchnorm.BatchNorm2d(4).train(), (torch.randn(4, 4, 8, 8),))
    assert not any("batchnorm" in str(node.target) for node in exported.graph.nodes)


@dataclass(frozen=True)
class Moved(Estimator):
    """An estimator of the test's own."""

    how: Any

    def move(self, state, now):
        return self.how(state, now)


@dataclass(frozen=True)
class Planned(Coupling):
    """A coupling of the test's own."""

    how: Any

    def plan(self, state, now):
        return self.how(state, now)


def full(state, value):
    return torch.full_like(state.mean, value)


def clipped(state, now):
    a = 0.1 / (1 + (now.batch.mean - state.mean).abs())
    return Move(a, 1 - a, a)


def by_batch(state, now):
    w = 0.5 + 0.1 * torch.tanh(now.batch.mean.detach())
    return Numbers(w, w), Vectors(state.mean, rest=(1 - w) * state.var)


def by_count(state, now):
    w = now.n / (now.n + 8.0)
    return Numbers(w, w), Vectors(state.mean, rest=(1 - w) * state.var)


def by_group(state, now):
    rest = torch.arange(1.0, 3.0, dtype=torch.float64)[:, None] * state.var
    return Numbers(share=0.5), Vectors(rest=rest)


# Own choices, and whether their numbers are known before the batch is reduced: only then the operators serve.
OWN = {
    "both from elsewhere": (
        {"estimator": Moved(lambda s, now: Move(0.5, 0.5, 0.5, from_mean=full(s, 10), from_var=full(s, 4)))},
        True,
    ),
    "the mean from elsewhere": (
        {"estimator": Moved(lambda s, now: Move(0.5, 0.5, 0.5, 0.25, from_mean=full(s, 3)))},
        True,
    ),
    "the variance from elsewhere": (
        {"estimator": Moved(lambda s, now: Move(0.5, 0.5, 0.5, from_var=full(s, 4)))},
        True,
    ),
    "deviations from elsewhere": (
        {"estimator": Moved(lambda s, now: Move(0.5, 0.5, 0.5, root=True, from_var=full(s, 4)))},
        True,
    ),
    "expanded": (
        {"estimator": Moved(lambda s, now: Move(0.5, 0.5, 0.5, from_mean=s.mean.new_ones(1).expand(len(s.mean))))},
        True,
    ),
    "a gain by count": ({"estimator": Moved(lambda s, now: Move(8 / now.n, 1 - 8 / now.n, 8 / now.n))}, True),
    "a share by count": ({"coupling": Planned(by_count)}, True),
    "a share by count in groups": ({"coupling": Planned(by_count), "extent": Ghost(3)}, True),
    "a share by count in uneven groups": ({"coupling": Planned(by_count), "extent": Ghost(4)}, False),
    "a gain by the batch": ({"estimator": Moved(clipped)}, False),
    "a share by the batch": ({"coupling": Planned(by_batch)}, False),
    "a vector for each group": ({"coupling": Planned(by_group), "extent": Ghost(4)}, False),
}


@pytest.mark.parametrize("name", slow_but([*OWN], {"both from elsewhere", "a share by count", "a gain by the batch"}))
def test_own_choices_compile_to_the_eager_step(name):
    torch.compiler.reset()
    choices, served = OWN[name]
    eager = batchnorm.BatchNorm1d(5, **choices)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, g = torch.randn(2, 9, 5) + 1
        found = []
        for module, call in ((eager, eager), (twin, compiled)):
            leaf = x.clone().requires_grad_()
            module.zero_grad()
            y, names = operators(lambda leaf=leaf, call=call: call(leaf))
            assert ("batchnorm::train" in names) == (served and call is compiled)
            y.backward(g)
            found.append([y.detach(), leaf.grad, module.weight.grad, module.running_mean, module.running_var])
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*found, strict=True))


def test_a_learned_vector_keeps_its_gradient_in_a_compiled_graph():
    torch.compiler.reset()
    found = []
    for compiles in (False, True):
        rest = torch.full((5,), 0.5, dtype=torch.float64, requires_grad=True)
        choice = Planned(lambda state, now, rest=rest: (Numbers(share=0.5), Vectors(rest=rest)))
        layer = batchnorm.BatchNorm1d(5, coupling=choice)
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiles else layer
        call(torch.arange(40.0).reshape(8, 5).sqrt()).square().sum().backward()
        found.append(rest.grad)
    assert torch.allclose(*found, rtol=1e-5)
    assert found[0].abs().min() > 0
