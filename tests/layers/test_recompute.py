"""Which forwards inside a backward are run again (no second update), and which are new."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
other = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def moves(layer):
    return int(layer.num_batches_tracked)


def after_accumulation(net, hook):
    net.weight.register_post_accumulate_grad_hook(hook)


def on_module(net, hook):
    net.register_full_backward_hook(hook)


def on_module_before(net, hook):
    net.register_full_backward_pre_hook(hook)


@pytest.mark.parametrize("register", [after_accumulation, on_module, on_module_before])
def test_a_training_forward_in_a_gradient_hook_moves_the_statistics(register):
    layer = batchnorm.BatchNorm1d(3)
    net = nn.Linear(3, 3)

    def hook(*_):
        with torch.enable_grad():
            layer(other)

    register(net, hook)
    net(X.clone().requires_grad_()).square().sum().backward()
    assert moves(layer) == 1
    assert torch.allclose(layer.running_mean, 0.1 * other.mean(0))


def test_a_training_forward_in_a_tensors_hook_moves_the_statistics():
    layer, seen = batchnorm.BatchNorm1d(3), []
    x = X.clone().requires_grad_()
    y = x * 2
    y.register_hook(lambda g: seen.append(layer(other)))
    y.sum().backward()
    assert (len(seen), moves(layer)) == (1, 1)


@pytest.mark.parametrize("method", ["batchnorm", "renorm", "population", "debiased", "window"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_does_not_move_them_twice(reentrant, method):
    layer, plain = batchnorm.BatchNorm1d(3, method=method), batchnorm.BatchNorm1d(3, method=method)
    x = X.clone().requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    plain(X)
    assert moves(layer) == 1
    assert torch.equal(layer.running_mean, plain.running_mean)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_whose_first_forward_is_in_a_hook_moves_once(reentrant):
    layer = batchnorm.BatchNorm1d(3)
    y = X.clone().requires_grad_() * 2

    def hook(g):
        with torch.enable_grad():
            checkpoint(layer, other.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()

    y.register_hook(hook)
    y.sum().backward()
    assert moves(layer) == 1


def test_nested_checkpoints_move_once():
    layer = batchnorm.BatchNorm1d(3)

    def inner(x):
        return checkpoint(layer, x, use_reentrant=False) * 2

    checkpoint(inner, X.clone().requires_grad_(), use_reentrant=False).square().sum().backward()
    assert moves(layer) == 1


def test_a_function_that_runs_its_forward_again_in_its_backward_moves_once():
    layer = batchnorm.BatchNorm1d(3)

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return layer(x)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(layer(x), x, g)[0]

    Again.apply(X.clone().requires_grad_()).square().sum().backward()
    assert moves(layer) == 1
