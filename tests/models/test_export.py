"""Export: stock operations come out for every method, in eval and, where there is one, in train mode."""

import copy

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.layers import METHODS
from batchnorm.models import adapt, fold, freeze
from tests.sampling import slow_but

# What no affine map per channel can say does not come out as one batch normalization.
OWN_ARITHMETIC = {"example-weighing", "online"}
NEEDS_A_MASK = {"masked", "weighted"}
PLAIN = sorted(set(METHODS) - NEEDS_A_MASK)


class Net(nn.Module):
    """Two convolutions, each with batch norm of a method."""

    def __init__(self, method=None, **choices):
        super().__init__()
        kind = nn.BatchNorm2d if method is None else batchnorm.BatchNorm2d
        options = {} if method is None else {"method": method, **choices}
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), kind(8, **options)
        self.conv2, self.bn2 = nn.Conv2d(8, 4, 3), kind(4, **options)
        if method == "cbn":
            self.bn1.attach(self.conv1)
            self.bn2.attach(self.conv2)

    def forward(self, x):
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))).mean((2, 3))


def used(net, seed=0):
    """After a few training steps: statistics that are not the initial ones."""
    torch.manual_seed(seed)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for _ in range(3):
        net.train()(torch.randn(8, 3, 8, 8) + 1).sum().backward()
    return net.eval()


def operations(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def normalizations(program):
    return [op for op in operations(program) if "batch_norm" in op]


@pytest.mark.parametrize("method", slow_but(PLAIN, {"batchnorm", "window", "renorm", "mabn", "example-weighing"}))
def test_eval_mode_exports_stock_batch_norm_of_any_batch_size(method):
    net, x = used(Net(method)), torch.randn(4, 3, 8, 8) + 1
    # Each example's own statistics are groups of the batch, whose number is a constant of the graph.
    free = method != "example-weighing"
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},) if free else None)
    exported = program.module()
    for n in (2, 7) if free else (4,):
        x = torch.randn(n, 3, 8, 8) + 1
        torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-5)
    assert normalizations(program) == ["aten.batch_norm.default"] * (2 if free else 0)
    if method not in OWN_ARITHMETIC:
        # Nothing but what the stock layers give.
        plain = torch.export.export(used(Net()), (torch.randn(4, 3, 8, 8),))
        assert operations(program) == operations(plain)


@pytest.mark.parametrize("method", sorted(NEEDS_A_MASK))
def test_layers_that_need_a_mask_export_once_they_are_stock(method):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), batchnorm.BatchNorm2d(8, method=method)).eval()
    stock = batchnorm.to_stock(copy.deepcopy(net))
    program = torch.export.export(stock, (torch.randn(4, 3, 8, 8),))
    assert len(normalizations(program)) == 1


def test_frozen_fused_adapted_and_folded_models():
    x = torch.randn(4, 3, 8, 8) + 1
    net = used(Net("batchnorm"))
    frozen = freeze(copy.deepcopy(net)).train()
    fused = copy.deepcopy(net)
    fused.bn1.activation = "leaky_relu"
    adapted = copy.deepcopy(net)
    adapt(adapted, x.split(2), "domain")
    affine = fold(net, x, timing=0).model
    for model, count in ((frozen, 2), (fused, 2), (adapted, 2), (affine, 0)):
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
        assert len(normalizations(program)) == count
        # No statistic moves in what was exported.
        assert program.graph_signature.buffers_to_mutate == {}


TRAINS = ("batchnorm", "renorm", "debiased", "pooled", "cumulative", "window", "population")
TRAINS += ("ghost", "example-weighing", "banks", "diminishing")


@pytest.mark.parametrize("method", slow_but(TRAINS, {"batchnorm", "renorm"}))
def test_train_mode_exports_with_its_statistics(method):
    """For fine-tuning on a device: loss, gradients and every buffer of 3 steps are those of the model."""
    net, x = used(Net(method)).train(), torch.randn(8, 3, 8, 8) + 1
    net.zero_grad()
    # An exported program shares the parameters and buffers of the model it came from.
    program = torch.export.export(copy.deepcopy(net), (x,))
    exported = program.module()
    for step in range(3):
        x = torch.randn(8, 3, 8, 8) * (step + 1)
        for model in (net, exported):
            loss = model(x).square().mean()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
    parameters, buffers = dict(exported.named_parameters()), dict(exported.named_buffers())
    for name, value in net.named_parameters():
        torch.testing.assert_close(parameters[name], value, rtol=1e-3, atol=1e-4)
    for name, value in net.named_buffers():
        if name in buffers:
            torch.testing.assert_close(buffers[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["cbn"])
def test_train_mode_says_what_it_cannot_export(method):
    with pytest.raises(Exception, match=r"[Cc]ross-iteration|compile"):
        torch.export.export(used(Net(method)).train(), (torch.randn(8, 3, 8, 8),))
