"""Batch normalization in plain float64 torch, and how to run a layer: what the tests of the methods compare with."""

from typing import NamedTuple

import torch


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def data(step, *shape):
    """Batches whose mean and spread differ from step to step and from channel to channel."""
    channel = torch.arange(shape[1], dtype=torch.float64).reshape(1, -1, *[1] * (len(shape) - 2))
    return randn(*shape, seed=step) * (1 + 0.5 * step) * (1 + channel) + step - channel


def axes(x):
    return (0, *range(2, x.dim()))


def over(vector, x):
    """A channel vector that broadcasts over x."""
    return vector.reshape(1, -1, *[1] * (x.dim() - 2))


def moments(x):
    """Mean and biased variance per channel."""
    return x.mean(axes(x)), x.var(axes(x), correction=0)


def normalise(x, mean, var, eps=1e-5):
    return (x - over(mean, x)) / over((var + eps).sqrt(), x)


def batch_norm(x, eps=1e-5):
    return normalise(x, *moments(x), eps)


class Run(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None


def run(layer, x, g, **given):
    """One forward and backward of a layer, its gradients fresh."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x, **given)
    y.backward(g)
    grads = [None if p is None or p.grad is None else p.grad.clone() for p in (layer.weight, layer.bias)]
    return Run(y.detach(), x.grad, *grads)


def run_plain(forward, x, g, weight, bias):
    """The same for a differentiable function of x, with an affine map behind it."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    y = forward(x) * over(weight, x) + over(bias, x)
    y.backward(g)
    return Run(y.detach(), x.grad, weight.grad, bias.grad)


def affine(layer, seed=9):
    """Give a layer a weight and a bias that are not 1 and 0."""
    with torch.no_grad():
        layer.weight.copy_(randn(len(layer.weight), seed=seed))
        layer.bias.copy_(randn(len(layer.bias), seed=seed + 1))
    return layer


def close(a, b, tolerance=1e-12):
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def same(a, b, tolerance=1e-12):
    """Whether two runs agree in everything both have."""
    pairs = [(p, q) for p, q in zip(a, b, strict=True) if p is not None and q is not None]
    return all(close(p, q, tolerance) for p, q in pairs)


def buffers(layer):
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}
