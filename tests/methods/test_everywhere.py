"""Every named method under compilation, autocast, copying, saving, resuming and function transforms."""

import copy
import io

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.layers import METHODS
from tests.methods.plain import close, data, randn
from tests.subjects import INEXACT, Subject

SHAPE = (4, 3, 2, 3)
WITHOUT_CBN = [method for method in METHODS if method != "cbn"]


def trained(method, **options):
    subject = Subject(method, 3, dtype=torch.float64, **options)
    for step in range(4):
        subject(data(step, *SHAPE)).sum().backward()
    subject.zero_grad()
    return subject


def stepped(call, subject, step):
    """Output and gradients of one training step."""
    x = data(step, *SHAPE).requires_grad_()
    y = call(x)
    y.backward(randn(*SHAPE, seed=step + 50))
    grads = [x.grad, *(p.grad for p in subject.parameters() if p.grad is not None)]
    subject.zero_grad()
    return [y.detach(), *grads]


def compiled_is_eager(method, backend):
    torch.compiler.reset()
    eager = Subject(method, 3, dtype=torch.float64)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for step in range(5):
        expected, got = stepped(eager, eager, step), stepped(compiled, twin, step)
        assert all(close(a, b, 1e-10) for a, b in zip(got, expected, strict=True)), step
    for (name, a), (_, b) in zip(eager.named_buffers(), twin.named_buffers(), strict=True):
        assert close(a.double(), b.double(), 1e-10), name
    x = data(7, *SHAPE)
    assert close(torch.compile(twin.eval(), fullgraph=True, backend=backend)(x), eager.eval()(x), 1e-10)


# One of each kind; the slow test below compiles them all, further.
@pytest.mark.parametrize("method", ["batchnorm", "renorm"])
def test_compiled_whole(method):
    compiled_is_eager(method, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("method", WITHOUT_CBN)
def test_compiled_whole_to_native_code(method):
    compiled_is_eager(method, "inductor")


def test_cross_iteration_says_that_it_cannot_be_compiled():
    torch.compiler.reset()
    subject = torch.compile(Subject("cbn", 3), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="takes a derivative inside its forward"):
        subject(torch.randn(SHAPE))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_autocast_keeps_statistics_wide_and_outputs_as_torch_does(method, training):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), Subject(method, 3)).train(training)
    stock = nn.Sequential(net[0], nn.BatchNorm2d(3)).train(training)
    if method == "cbn":
        net = net[1]
        stock = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train(training)
    for step in range(3):
        x = data(step, *SHAPE).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, reference = net(x), stock(x)
        assert y.dtype == reference.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    for name, buffer in net.named_buffers():
        assert buffer.dtype in (torch.float32, torch.float64, torch.int64), name
        assert torch.isfinite(buffer).all(), name


@pytest.mark.parametrize("method", METHODS)
def test_deepcopy_is_independent_and_goes_on_alike(method):
    first = trained(method)
    twin = copy.deepcopy(first)
    kept = {name: b.clone() for name, b in twin.named_buffers()}
    expected = stepped(first, first, 5)
    assert all(torch.equal(b, kept[name]) for name, b in twin.named_buffers())
    assert all(torch.equal(a, b) for a, b in zip(stepped(twin, twin, 5), expected, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_strict_state_dict_round_trip(method):
    first, second = trained(method), Subject(method, 3, dtype=torch.float64)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for step in (5, 6):
        pairs = zip(stepped(second, second, step), stepped(first, first, step), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(first.eval()(data(7, *SHAPE)), second.eval()(data(7, *SHAPE)))


def small_net(method):
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 3, 3, dtype=torch.float64), Subject(method, 3, dtype=torch.float64), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 2, dtype=torch.float64))
    return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(net, optimizer, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(randn(6, 2, 4, 4, seed=step)), torch.arange(6) % 2)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_is_bitwise_the_uninterrupted_run(method):
    net, optimizer = small_net(method)
    whole = train(net, optimizer, range(8))
    first, first_optimizer = small_net(method)
    losses = train(first, first_optimizer, range(4))
    file = io.BytesIO()
    torch.save({"net": first.state_dict(), "optimizer": first_optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, second_optimizer = small_net(method)
    second.load_state_dict(saved["net"], strict=True)
    second_optimizer.load_state_dict(saved["optimizer"])
    assert losses + train(second, second_optimizer, range(4, 8)) == whole
    for (name, a), (_, b) in zip(net.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", METHODS)
def test_functional_call_moves_the_buffers_given_and_no_others(method):
    """In training, the backward after the call included; and at inference."""
    subject = trained(method)
    twin = copy.deepcopy(subject)
    given = {name: t.detach().clone() for name, t in (*subject.named_parameters(), *subject.named_buffers())}
    for name, _ in subject.named_parameters():
        given[name].requires_grad_()
    before = {name: b.clone() for name, b in subject.named_buffers()}
    x, g = data(5, *SHAPE), randn(*SHAPE, seed=5)
    y = torch.func.functional_call(subject, given, (x,))
    y.backward(g)
    expected = twin(x)
    expected.backward(g)
    assert close(y, expected)
    assert close(given["layer.weight"].grad, twin.layer.weight.grad)
    for name, buffer in twin.named_buffers():
        assert torch.equal(subject.get_buffer(name), before[name]), name
        assert close(given[name].double(), buffer.double()), name
    given = {name: t.detach() for name, t in given.items()}
    assert close(torch.func.functional_call(subject.eval(), given, (x,)), twin.eval()(x))


@pytest.mark.parametrize("method", METHODS)
def test_vmap_and_grad_over_inference(method):
    subject = trained(method).eval()
    xs = torch.stack([data(step, *SHAPE) for step in range(3)])
    assert close(torch.func.vmap(subject)(xs), torch.stack([subject(x) for x in xs]))

    def loss(x):
        return subject(x).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss))(xs)
    for x, grad in zip(xs, grads, strict=True):
        x = x.clone().requires_grad_()
        loss(x).backward()
        assert close(x.grad, grad)


@pytest.mark.parametrize("method", INEXACT)
def test_an_estimate_with_a_memory_is_no_derivative_to_transform_in_training(method):
    subject = trained(method)
    with pytest.raises(BatchNormError, match=r"cannot be transformed by torch\.func in training"):
        torch.func.grad(lambda x: subject(x).sum())(data(0, *SHAPE))


@pytest.mark.parametrize("method", [m for m in WITHOUT_CBN if m not in INEXACT])
def test_grad_in_training_is_that_of_autograd(method):
    subject = trained(method)
    twin = copy.deepcopy(subject)
    x, g = data(5, *SHAPE), randn(*SHAPE, seed=5)
    with batchnorm.pause(subject):
        got = torch.func.grad(lambda x: (subject(x) * g).sum())(x)
    x.requires_grad_()
    (twin(x) * g).sum().backward()
    assert close(got, x.grad)
