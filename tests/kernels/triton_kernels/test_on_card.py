"""What only a card can show: a step in a CUDA graph, that nothing waits for the device, and what is launched."""

import copy

import pytest
import torch

import batchnorm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

# Of one launch each way, and of three.
SHAPES = [(8, 16, 5, 3), (32, 16, 40, 40)]
METHODS = ["renorm", "ghost", "mabn", "power", "unified", "population", "debiased", "cumulative", "window"]


def made(method, shape):
    layer = batchnorm.BatchNorm2d(shape[1], method=method, activation="relu").cuda()
    return layer, torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")


def step(layer, x, g):
    x.grad = None
    layer.zero_grad()
    y = layer(x)
    y.backward(g)
    return y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_does_what_a_step_does(method, shape):
    layer, x, g = made(method, shape)
    twin = copy.deepcopy(layer)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(layer, x, g)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(layer, x, g)
    dx = x.grad
    for _ in range(2):
        graph.replay()
    given = x.detach().clone().requires_grad_()
    expected = [step(twin, given, g) for _ in range(3)][-1]
    assert torch.equal(y, expected)
    assert torch.equal(dx, given.grad)
    for one, other in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits(method, shape):
    layer, x, g = made(method, shape)
    step(layer, x, g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("shape", "launches"), list(zip(SHAPES, (2, 6), strict=True)))
def test_launches(shape, launches):
    layer, x, g = made("renorm", shape)
    step(layer, x, g)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(layer, x, g)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert sum("_kernel" in event.name and "at::" not in event.name for event in kernels) == launches
