"""TorchScript, FX and quantization: traces work as they are, and what knows torch's classes alone does after `to_stock`."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    fuse_modules,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    prepare_qat,
)
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx, prepare_qat_fx
from torch.fx.experimental.optimization import fuse

import batchnorm
from batchnorm import BatchNormError
from batchnorm.layers import METHODS
from tests.subjects import EXACT, INEXACT, Subject

X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
BY_SIZE = ("ghost", "example-weighing", "masked", "weighted")


def ours(train=False):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), batchnorm.BatchNorm2d(3), nn.ReLU())
    model(X)
    return model.train(train)


def stock(train=False):
    return batchnorm.to_stock(ours(train))


def kinds(model):
    return [type(m).__name__ for m in model.children()]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("method", [method for method in EXACT if method != "cbn"])
def test_a_trace_passes_its_own_check_and_gives_the_layers_output(method, train, gradients):
    subject = Subject(method, 3).train(train)
    x = torch.randn(8, 3, 4, 4, requires_grad=gradients)
    traced = torch.jit.trace(subject, x)
    other = torch.randn(8 if method in BY_SIZE else 5, 3, 4, 4, requires_grad=gradients)
    plain = copy.deepcopy(subject)
    assert torch.allclose(traced(other), plain(other), atol=1e-5)
    assert torch.allclose(subject.layer.running_var, plain.layer.running_var, atol=1e-5)


@pytest.mark.parametrize("method", (*INEXACT, "cbn"))
def test_methods_that_a_trace_cannot_hold_say_so(method):
    with pytest.raises(BatchNormError, match=r"traced in eval mode|torch\.jit\.trace cannot trace"):
        torch.jit.trace(Subject(method, 3), torch.randn(8, 3, 4, 4))


def test_script_is_told_and_works_after_to_stock():
    with pytest.raises(BatchNormError, match="to_stock"):
        torch.jit.script(ours())
    model = stock()
    assert torch.allclose(torch.jit.script(copy.deepcopy(model))(X), model(X))
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(model)))
    assert torch.allclose(frozen(X), model(X), atol=1e-5)


def test_fuse_modules_works_after_to_stock():
    with pytest.raises(AssertionError, match="fuser"):
        fuse_modules(ours(), [["0", "1", "2"]])
    model = stock()
    fused = fuse_modules(model, [["0", "1", "2"]])
    assert kinds(fused) == ["ConvReLU2d", "Identity", "Identity"]
    assert torch.allclose(fused(X), model(X), atol=1e-5)


def test_the_optimizer_of_fx_folds_after_to_stock_and_leaves_ours_alone():
    model = ours()
    assert kinds(fuse(model)) == ["Conv2d", "BatchNorm2d", "ReLU"]
    plain = stock()
    assert kinds(fuse(plain)) == ["Conv2d", "ReLU"]
    assert torch.allclose(fuse(plain)(X), plain(X), atol=1e-5)


FX = {
    "fuse_fx": (lambda model: fuse_fx(model), False),
    "prepare_fx": (lambda model: prepare_fx(model, get_default_qconfig_mapping(), (X,)), False),
    "prepare_qat_fx": (lambda model: prepare_qat_fx(model, get_default_qat_qconfig_mapping(), (X,)), True),
}


@pytest.mark.parametrize("name", FX)
def test_fx_quantization_warns_and_fuses_after_to_stock(name):
    tool, train = FX[name]
    with pytest.warns(UserWarning, match="to_stock"):
        assert "BatchNorm2d" in kinds(tool(ours(train)))
    prepared = tool(stock(train))
    assert "BatchNorm2d" not in kinds(prepared)
    if name != "fuse_fx":
        prepared(X)
        quantized = convert_fx(prepared.eval())
        assert kinds(quantized) == ["ConvReLU2d"]
        assert (quantized(X) - stock()(X)).abs().max() < 1


def test_a_model_prepared_for_quantization_takes_our_layers_and_is_converted_with_them():
    model = fuse_modules_qat(nn.Sequential(QuantStub(), *stock(train=True), DeQuantStub()), [["1", "2", "3"]])
    model.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(model, inplace=True)
    plain = copy.deepcopy(model)
    batchnorm.convert(model)
    assert type(model[1].bn) is batchnorm.BatchNorm2d
    plain(X), model(X)
    assert torch.allclose(plain[1].bn.running_var, model[1].bn.running_var, rtol=1e-5)
    assert torch.allclose(convert(plain.eval())(X), convert(model.eval())(X), atol=0.05)


def test_every_method_is_one_node_of_a_symbolic_trace():
    for method in METHODS:
        graph = torch.fx.symbolic_trace(nn.Sequential(batchnorm.BatchNorm2d(3, method=method))).graph
        assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"], method
