"""Tools that know torch's classes: after `to_stock` each works; docs/deviations.md says what they do before it."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx

import batchnorm
from batchnorm import BatchNormError
from tests.subjects import EXACT, INEXACT, Subject

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    batchnorm.convert(net)
    for _ in range(3):
        net(X)
    return net.eval()


def stock():
    return batchnorm.to_stock(model())


def norms(net):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_jit_trace_with_its_own_check(training, gradients):
    layer = batchnorm.BatchNorm2d(3).train(training)
    expected = nn.BatchNorm2d(3).train(training)
    x = X.clone().requires_grad_(gradients)
    traced = torch.jit.trace(layer, x)
    got = traced(x)
    assert torch.allclose(got, expected(x), atol=1e-6)
    if gradients:
        got.sum().backward()


# A trace keeps the sizes of groups, and of the masks that the subject makes.
BY_SIZE = ("ghost", "example-weighing", "masked", "weighted")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("method", [method for method in EXACT if method != "cbn"])
def test_a_trace_of_every_method_is_the_layer_at_other_batch_sizes_too(method, train):
    subject = Subject(method, 3).train(train)
    traced = torch.jit.trace(subject, torch.randn(8, 3, 4, 4, requires_grad=True))
    other = torch.randn(8 if method in BY_SIZE else 5, 3, 4, 4, requires_grad=True)
    plain = copy.deepcopy(subject)
    assert torch.allclose(traced(other), plain(other), atol=1e-5)
    assert torch.allclose(subject.layer.running_var, plain.layer.running_var, atol=1e-5)


@pytest.mark.parametrize("method", [*INEXACT, "cbn"])
def test_methods_that_a_trace_cannot_hold_say_so(method):
    with pytest.raises(BatchNormError, match=r"traced in eval mode|torch\.jit\.trace cannot trace"):
        torch.jit.trace(Subject(method, 3), torch.randn(8, 3, 4, 4))


def test_a_traced_batch_that_is_not_finite_is_skipped_as_ever():
    layer = batchnorm.BatchNorm2d(3)
    torch.jit.trace(layer, X)(torch.full_like(X, torch.nan))
    assert torch.isfinite(layer.running_var).all()


@pytest.mark.parametrize("train", [False, True])
def test_fx_quantisation_is_told_that_it_fuses_nothing(train):
    mapping = quantization.get_default_qat_qconfig_mapping() if train else quantization.get_default_qconfig_mapping()
    prepare = quantize_fx.prepare_qat_fx if train else quantize_fx.prepare_fx
    with pytest.warns(UserWarning, match=r"BatchNorm2d '1' unfused; call batchnorm\.to_stock"):
        prepare(model().train(train), mapping, (X,))


def test_jit_script_and_freezing_after_to_stock():
    net = stock()
    frozen = torch.jit.freeze(torch.jit.script(net))
    assert torch.allclose(frozen(X), net(X), atol=1e-5)


def test_fuse_modules_after_to_stock():
    net = stock()
    fused = quantization.fuse_modules(copy.deepcopy(net), [["0", "1", "2"]])
    assert norms(fused) == 0
    assert torch.allclose(fused(X), net(X), atol=1e-5)


def test_fuse_fx_after_to_stock():
    net = stock()
    fused = quantize_fx.fuse_fx(copy.deepcopy(net))
    assert norms(fused) == 0
    assert torch.allclose(fused(X), net(X), atol=1e-5)


def test_the_experimental_fuser_after_to_stock():
    from torch.fx.experimental import optimization

    net = stock()
    fused = optimization.fuse(copy.deepcopy(net))
    assert norms(fused) == 0
    assert torch.allclose(fused(X), net(X), atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_prepare_and_convert_fx_after_to_stock(train):
    net = stock().train(train)
    mapping = quantization.get_default_qat_qconfig_mapping() if train else quantization.get_default_qconfig_mapping()
    prepare = quantize_fx.prepare_qat_fx if train else quantize_fx.prepare_fx
    prepared = prepare(net, mapping, (X,))
    prepared(X)
    quantized = quantize_fx.convert_fx(prepared.eval())
    assert norms(quantized) == 0
    assert torch.allclose(quantized(X), stock()(X), atol=0.2)


@pytest.mark.parametrize("how", ["fx", "eager"])
def test_a_model_prepared_for_quantisation_is_converted_and_trains(how):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    if how == "fx":
        net = quantize_fx.prepare_qat_fx(net, quantization.get_default_qat_qconfig_mapping(), (X,))
    else:
        net.qconfig = quantization.get_default_qat_qconfig("x86")
        fused = quantization.fuse_modules_qat(net, [["0", "1", "2"]])
        net = quantization.prepare_qat(fused)
    batchnorm.convert(net)
    net(X).sum().backward()
    (layer,) = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert int(layer.num_batches_tracked) == 1


def test_before_to_stock_the_silent_tools_leave_the_layers_as_they_are():
    """What docs/deviations.md says: nothing is fused, and nothing is computed wrong."""
    from torch.fx.experimental import optimization

    net = model()
    for made in (quantize_fx.fuse_fx(copy.deepcopy(net)), optimization.fuse(copy.deepcopy(net))):
        assert torch.allclose(made(X), net(X), atol=1e-5)


def test_before_to_stock_fuse_modules_refuses_and_script_names_to_stock():
    net = model()
    with pytest.raises((NotImplementedError, AssertionError)):  # by the version of torch
        quantization.fuse_modules(copy.deepcopy(net), [["0", "1", "2"]])
    with pytest.raises(batchnorm.BatchNormError, match="to_stock"):
        torch.jit.script(net)


def test_symbolic_trace_keeps_the_layers_whole():
    traced = fx.symbolic_trace(model())
    assert norms(traced) == 1
