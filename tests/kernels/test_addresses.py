"""No address outlives a call: whatever is moved between forward and backward, native and torch do the same."""

import copy

import pytest
import torch

import batchnorm
from batchnorm import BatchNormError, OperandError, kernels
from batchnorm.kernels import native
from batchnorm.layers import MABN, PowerNorm, UnifiedNorm

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")

CHANNELS = 6
# Windows and warm-ups so short that memory is used within a few steps.
SHORT = {
    "mabn": {"coupling": MABN(3, 1.1, 1, 3)},
    "power": {"coupling": PowerNorm(warmup=2)},
    "unified": {"coupling": UnifiedNorm(3, 1.2, 1)},
}
GIVEN = {"masked": {"mask": torch.arange(8) != 2}, "weighted": {"weights": torch.arange(8.0) + 1}}


def tensors(layer):
    return [*layer.parameters(), *layer.buffers()]


def set_(layer):
    for buffer in layer.buffers():
        buffer.set_(buffer.clone())


def data(layer):
    for tensor in tensors(layer):
        tensor.data = tensor.data.clone()


def in_another_layout(layer):
    """The same values where the kernels cannot read them."""
    for tensor in tensors(layer):
        if tensor.dim():
            tensor.data = torch.stack((tensor.data, tensor.data), -1)[..., 0]


def assign(layer):
    other = {name: value.clone() for name, value in layer.state_dict().items()}
    for value in other.values():
        if value.is_floating_point():
            value.mul_(1.25)
    layer.load_state_dict(other, assign=True)


MOVES = {
    "share_memory_": lambda layer: layer.share_memory(),
    "set_": set_,
    ".data =": data,
    "not contiguous": in_another_layout,
    "assign": assign,
}
# torch's own backward refuses parameters whose dtype is another one by then; methods with a memory have the passes.
CASTS = {"double": lambda layer: layer.double(), "bfloat16": lambda layer: layer.bfloat16()}


def layer_of(method, **more):
    layer = batchnorm.BatchNorm1d(CHANNELS, method=method, **SHORT.get(method, {}), **more)
    if method == "cbn":
        layer.attach(torch.nn.Linear(CHANNELS, CHANNELS))
    return layer


def trained(layer, method, move, steps=6):
    """Outputs, gradients and buffers of some steps, the last but one of which is disturbed by a move."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(steps):
        x = (torch.randn(8, CHANNELS, generator=generator) + 1).requires_grad_()
        g = torch.randn(8, CHANNELS, generator=generator)
        if step == steps - 1:
            # A step in the dtype that the layer has by now.
            dtype = torch.float64 if layer.running_mean.dtype is torch.float64 else torch.float32
            x, g = x.detach().to(dtype).requires_grad_(), g.to(dtype)
        y = layer(x if layer.before is None else layer.before(x.float()), **GIVEN.get(method, {}))
        if step == steps - 2:
            move(layer)
        y.backward(g)
        found += [y.detach(), x.grad]
    return found + [b.clone() for b in layer.buffers()]


@pytest.mark.parametrize(
    ("method", "move"), [(m, v) for m in batchnorm.methods() for v in MOVES] + [(m, v) for m in SHORT for v in CASTS]
)
def test_what_is_moved_between_forward_and_backward_gets_the_update(method, move):
    one = layer_of(method)
    two = copy.deepcopy(one)
    move = {**MOVES, **CASTS}[move]
    got = trained(one, method, move)
    kernels.use("reference")
    try:
        expected = trained(two, method, move)
    finally:
        kernels.use()
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_tensors_that_took_a_buffers_place_hold_the_update(method, backend):
    kernels.use(backend)
    try:
        layer = layer_of(method)
        for _ in range(4):
            layer(torch.randn(8, CHANNELS, requires_grad=True)).sum().backward()
        y = layer(torch.randn(8, CHANNELS, requires_grad=True))
        old = {name: (b, b.clone()) for name, b in layer.named_buffers() if name.startswith("backward")}
        layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()}, assign=True)
        before = {name: layer.get_buffer(name).clone() for name in old}
        (y * torch.linspace(-1, 2, CHANNELS)).square().sum().backward()
    finally:
        kernels.use()
    assert any(not torch.equal(layer.get_buffer(name), before[name]) for name in before)
    assert all(torch.equal(b, then) for b, then in old.values())


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_buffer_of_another_size_is_refused_and_nothing_is_written(method, backend):
    kernels.use(backend)
    try:
        layer = layer_of(method)
        for name, _ in list(layer.named_buffers()):
            if not name.startswith("backward") or layer.get_buffer(name).numel() < CHANNELS:
                continue
            y = layer(torch.randn(8, CHANNELS, requires_grad=True))
            buffer = layer.get_buffer(name)
            shape = buffer.shape
            buffer.resize_(2, 1)
            with pytest.raises(OperandError, match=f"{name} of layer .* must keep its .* values between"):
                y.sum().backward()
            buffer.resize_(shape).zero_()
    finally:
        kernels.use()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_other_tensors_stay_what_they_are(backend):
    """The failure that was seen: the old storage had become somebody else's memory."""
    kernels.use(backend)
    try:
        layer = batchnorm.BatchNorm1d(100_000, method="power")
        y = layer(torch.randn(8, 100_000, requires_grad=True))
        layer.share_memory()
        other = [torch.full((1_500_000,), 7.0) for _ in range(3)]
        y.square().sum().backward()
    finally:
        kernels.use()
    assert all(bool((t == 7).all()) for t in other)
    assert bool((layer.backward_v != 0).any())


def test_parameters_and_inputs_resized_in_between_are_refused():
    layer = batchnorm.BatchNorm1d(CHANNELS)
    y = layer(torch.randn(8, CHANNELS, requires_grad=True))
    layer.weight.data = torch.ones(2)
    with pytest.raises(OperandError, match=r"weight of layer .* must keep its shape between .*; it was \(6,\)"):
        y.sum().backward()
    layer = batchnorm.BatchNorm1d(CHANNELS)
    x = torch.randn(8, CHANNELS, requires_grad=True)
    y = layer(x)
    x.data = torch.randn(9, CHANNELS)
    with pytest.raises(OperandError, match=r"input of layer .* must keep its shape between .*; it was \(8, 6\)"):
        y.sum().backward()


def test_a_freed_storage_is_refused():
    layer = batchnorm.BatchNorm1d(CHANNELS)
    layer.weight.untyped_storage().resize_(0)
    with pytest.raises(BatchNormError, match=r"a tensor must have its values in memory; .* shape \(6,\) is empty"):
        layer(torch.randn(8, CHANNELS))


def test_a_layer_in_another_memory_layout_of_its_input():
    layer = batchnorm.BatchNorm2d(CHANNELS)
    x = torch.randn(4, CHANNELS, 3, 5, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g, retain_graph=True)
    x.data = x.data.contiguous(memory_format=torch.channels_last)
    (got,) = torch.autograd.grad(y, x, g)
    assert torch.allclose(got, expected, atol=1e-6)
