"""Outputs and gradients lie in memory as torch's do, so that what views them works in every mode."""

import itertools

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import kernels

KINDS = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
SHAPES = [(6, 3), (6, 1), (4, 3, 5), (4, 3, 1), (4, 1, 5), (4, 3, 5, 2), (4, 3, 1, 1), (2, 3, 2, 3, 2)]
INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layouts(shape):
    """Inputs of one shape: plain, transposed, with gaps, expanded, channels innermost."""
    axes = range(len(shape))
    yield "plain", torch.randn(shape)
    for a, b in itertools.combinations(axes, 2):
        swapped = list(shape)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield f"transposed {a} {b}", torch.randn(swapped).transpose(a, b)
    for axis in axes:
        twice = [2 * n if i == axis else n for i, n in enumerate(shape)]
        yield f"a part of axis {axis}", torch.randn(twice).narrow(axis, 0, shape[axis])
        every_other = tuple(slice(None, None, 2) if i == axis else slice(None) for i in axes)
        yield f"every other of axis {axis}", torch.randn(twice)[every_other]
        yield f"expanded {axis}", torch.randn([1 if i == axis else n for i, n in enumerate(shape)]).expand(shape)
    if len(shape) in INNERMOST:
        innermost = INNERMOST[len(shape)]
        yield "innermost", torch.randn(shape).contiguous(memory_format=innermost)
        wider = torch.randn(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=innermost)
        yield "a part of the channels, innermost", wider[:, : shape[1]]
        longer = torch.randn(2 * shape[0], *shape[1:]).contiguous(memory_format=innermost)
        yield "every other sample, innermost", longer[::2]


def strides(x):
    """Those that mean something: an axis of size 1 may have any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def layer(package, shape, mode):
    made = getattr(package, KINDS[len(shape)])(shape[1])
    if mode == "frozen":
        batchnorm.freeze(made)
    return made.train(mode != "eval")


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strides_are_torchs(shape, mode, backend):
    kernels.use(backend)
    try:
        for name, x in layouts(shape):
            for gradient in (torch.ones(()).expand(shape), torch.randn(shape)):
                found = []
                for package in (nn, batchnorm):
                    leaf = x.detach().requires_grad_()
                    y = layer(package, shape, mode)(leaf)
                    found.append((strides(y), strides(torch.autograd.grad(y, leaf, gradient)[0])))
                assert found[0] == found[1], name
            with torch.no_grad():
                plain, ours = (layer(package, shape, mode)(x) for package in (nn, batchnorm))
            assert strides(plain) == strides(ours), name
    finally:
        kernels.use()


@pytest.mark.parametrize("method", ["batchnorm", "ghost", "renorm", "window", "power", "unified", "online", "mabn"])
def test_every_method_keeps_three_axes_contiguous(method):
    x = torch.randn(4, 5, 3).transpose(1, 2).requires_grad_()
    made = batchnorm.BatchNorm1d(3, method=method)
    y = made(x)
    (gradient,) = torch.autograd.grad(y.view(-1).square().sum(), x)
    assert gradient.is_contiguous()
    assert made.eval()(x).is_contiguous()


def test_an_activation_keeps_three_axes_contiguous_in_both_modes():
    x = torch.randn(4, 5, 3).transpose(1, 2)
    made = batchnorm.BatchNorm1d(3, activation="relu")
    assert made(x).is_contiguous()
    assert made.eval()(x, residual=x).is_contiguous()


def test_a_layer_with_channels_last_by_name_keeps_them_there():
    x = torch.randn(4, 5, 3)
    assert batchnorm.BatchNorm(3, channel_axis=-1)(x).is_contiguous()


@pytest.mark.slow
def test_compiled_outputs_have_torchs_strides():
    x = torch.randn(64, 128, 80).transpose(1, 2)
    made = batchnorm.BatchNorm1d(80)
    assert torch.compile(made)(x).is_contiguous()
    big = torch.randn(32, 64, 20, 20).contiguous(memory_format=torch.channels_last)[:, :40]
    assert torch.compile(batchnorm.BatchNorm2d(40))(big).is_contiguous(memory_format=torch.channels_last)
