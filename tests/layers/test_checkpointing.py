"""Activation checkpointing: one update, and the gradients of the run without it."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchnorm import BatchNormError
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
        assert torch.equal(a, b), name
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
