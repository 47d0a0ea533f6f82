"""Layers and state dicts of torch libraries, to torch's own and back."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop import state_for, state_from, to_sync, to_torch, translate


class FrozenBatchNorm2d(nn.Module):
    """As detectron2 and torchvision freeze: four buffers, the identity at first."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0 - eps)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class ABN(nn.Module):
    """As inplace_abn's, with the CPU arithmetic of its in-place kernel in the subclass."""

    def __init__(self, channels, activation="leaky_relu", activation_param=0.01):
        super().__init__()
        self.num_features, self.eps, self.momentum = channels, 1e-3, 0.2
        self.affine = self.track_running_stats = True
        self.activation, self.activation_param = activation, activation_param
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def scale(self):
        return self.weight

    def forward(self, x):
        y = functional.batch_norm(x, self.running_mean, self.running_var, self.scale(), self.bias, eps=self.eps)
        return functional.leaky_relu(y, self.activation_param) if self.activation == "leaky_relu" else y


class InPlaceABN(ABN):
    def scale(self):
        return self.weight.abs() + self.eps


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: a batch norm that holds what comes after it."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    pass


def drawn(layer):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(value.abs() + 0.1 if name.endswith("running_var") else value)
    return layer


@pytest.mark.parametrize(
    "layer", [FrozenBatchNorm2d(4), ABN(4), ABN(4, "identity"), InPlaceABN(4), BatchNormAct2d(4), NaiveSyncBatchNorm(4)]
)
def test_a_library_layer_becomes_torch_s_with_the_same_output(layer):
    model = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU())).eval()
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    stock = to_torch(copy.deepcopy(model))
    torch.testing.assert_close(stock(x), wanted, rtol=1e-6, atol=1e-6)
    norms = [m for m in stock.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [type(m) for m in norms] == [nn.BatchNorm2d]
    assert not any(m.training for m in stock.modules())
    assert norms[0].eps == layer.eps
    # It is the same whether it is the root or not.
    torch.testing.assert_close(to_torch(copy.deepcopy(model[1]))(model[0](x)), model[:2](x), rtol=1e-6, atol=1e-6)


def test_a_frozen_layer_stays_frozen_in_training():
    model = to_torch(nn.Sequential(drawn(FrozenBatchNorm2d(3)))).train()
    before = model[0].running_mean.clone()
    x = torch.randn(8, 3, 2, 2, requires_grad=True)
    y = model(x)
    assert torch.equal(model[0].running_mean, before)
    assert not model[0].weight.requires_grad
    slope = torch.autograd.grad(y.sum(), x)[0]
    scale = model[0].weight / (model[0].running_var + 1e-5).sqrt()
    torch.testing.assert_close(slope, scale[:, None, None].expand_as(slope))


def test_a_fresh_frozen_layer_is_the_identity_as_it_was():
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(to_torch(FrozenBatchNorm2d(3))(x), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "cls", "shape"),
    [
        (nn.Conv1d(2, 3, 1), nn.BatchNorm1d, (4, 2, 5)),
        (nn.Conv2d(2, 3, 1), nn.BatchNorm2d, (4, 2, 5, 5)),
        (nn.Conv3d(2, 3, 1), nn.BatchNorm3d, (4, 2, 5, 5, 5)),
        (nn.Linear(2, 3), nn.BatchNorm1d, (4, 2)),
    ],
)
def test_sync_becomes_the_rank_of_the_map_before_and_back(before, cls, shape):
    model = drawn(nn.Sequential(before, cls(3, eps=1e-3, momentum=0.3)))
    model[1].num_batches_tracked.fill_(5)
    wanted, calls = model.eval()(torch.ones(shape)), []
    parameters = [id(p) for p in model.parameters()]
    sync = to_sync(model)
    assert type(sync[1]) is nn.SyncBatchNorm
    sync[1].register_forward_hook(lambda *_: calls.append(1))
    stock = to_torch(sync)
    assert type(stock[1]) is cls
    assert (stock[1].eps, stock[1].momentum, int(stock[1].num_batches_tracked)) == (1e-3, 0.3, 5)
    assert [id(p) for p in stock.parameters()] == parameters
    torch.testing.assert_close(stock(torch.ones(shape)), wanted, rtol=0, atol=0)
    assert calls == [1]


def test_a_shared_layer_stays_shared():
    layer = nn.SyncBatchNorm(3)
    model = to_torch(nn.ModuleList([layer, nn.Sequential(layer)]), dims=2)
    assert model[0] is model[1][0]
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("model", "dims", "sentence"),
    [
        (nn.Sequential(nn.ReLU(), nn.SyncBatchNorm(3)), None, "dims must be given for SyncBatchNorm layer '1'"),
        (nn.Sequential(nn.SyncBatchNorm(3)), {"0": 4}, r"dims\['0'\] must be 1, 2 or 3; it was 4"),
        (nn.Sequential(type("Odd", (nn.BatchNorm2d,), {})(3)), None, "'0' is a Odd of .*whose forward is its own"),
        (nn.Sequential(nn.SyncBatchNorm(3), ABN(3, "swish")), 2, "activation of relu, leaky_relu, elu, identity"),
    ],
)
def test_what_is_not_certain_is_refused_and_nothing_changes(model, dims, sentence):
    before = [type(m) for m in model.modules()]
    with pytest.raises(BatchNormError, match=sentence):
        to_torch(model, dims=dims)
    assert [type(m) for m in model.modules()] == before


def test_this_package_s_layers_are_left_alone_and_do_not_become_sync():
    model = nn.Sequential(batchnorm.BatchNorm2d(3))
    assert type(to_torch(model)[0]) is batchnorm.BatchNorm2d
    with pytest.raises(BatchNormError, match="convert\\(model, extent=Sync\\(\\)\\)"):
        to_sync(model)


@pytest.fixture
def timm():
    """Timm imports torchvision, which fails beside a torch without CUDA unless two operators have a schema."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


@pytest.mark.filterwarnings("default")
def test_a_network_of_timm_and_back(timm):
    """Its layers hold their activations, so the stock network has other paths; the weights go back by order."""
    model = drawn(timm.create_model("efficientnet_lite0", num_classes=5)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 20.0, 30.0)
    x = torch.randn(2, 3, 64, 64)
    wanted = model(x)
    stock = to_torch(copy.deepcopy(model))
    norms = [m for m in stock.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 49
    assert {type(m) for m in norms} == {nn.BatchNorm2d}
    assert any("BatchNormAct2d" in type(m).__name__ for m in model.modules())
    torch.testing.assert_close(stock(x), wanted, rtol=0, atol=0)
    again = timm.create_model("efficientnet_lite0", num_classes=5).eval()
    translate(stock, again)
    torch.testing.assert_close(again(x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("library", ["detectron2", "inplace_abn", "timm", "sync"])
def test_a_state_goes_to_a_library_and_back(library):
    model = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[1].weight.abs_().add_(0.01)
    state = model.state_dict()
    there = state_for(state, library, eps=1e-3)
    back = state_from(there, library, eps=1e-3)
    torch.testing.assert_close(back, dict(state), rtol=1e-6, atol=1e-7)
    assert ("1.num_batches_tracked" in there) is (library != "detectron2")


@pytest.mark.parametrize("library", ["detectron2", "detectron2-folded"])
def test_a_frozen_layer_loads_the_state_with_the_same_output(library):
    stock = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4))
    frozen.load_state_dict(state_for(stock.state_dict(), library), strict=library == "detectron2")
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(frozen(x), stock(x), rtol=1e-5, atol=1e-6)
    again = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    again.load_state_dict(state_from(state_for(stock.state_dict(), library), library, like=stock.state_dict()))
    torch.testing.assert_close(again(x), stock(x), rtol=1e-5, atol=1e-6)


def test_an_in_place_layer_loads_the_state_with_the_same_output():
    stock = drawn(nn.BatchNorm2d(4, eps=1e-3)).eval()
    with torch.no_grad():
        stock.weight.abs_().add_(0.01)
    layer = InPlaceABN(4, "identity")
    layer.load_state_dict(state_for(stock.state_dict(), "inplace_abn", eps=1e-3))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x), stock(x))
    layer.weight.data.neg_()  # it does not see the sign
    stock.load_state_dict(state_from(layer.state_dict(), "inplace_abn", eps=1e-3))
    torch.testing.assert_close(stock(x), layer(x))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: state_for(s, "caffe"), "library must be 'detectron2'"),
        (lambda s: state_from(s, "sync", eps=-1), "eps must be 0 or more"),
        (lambda s: state_for({**s, "weight": -s["weight"]}, "inplace_abn"), "weights of at least eps=1e-05"),
        (lambda s: state_from({}, "detectron2", like=s), "state must hold every layer of like"),
    ],
)
def test_states_that_have_no_place_there(call, sentence):
    with pytest.raises(BatchNormError, match=sentence):
        call(nn.BatchNorm2d(2).state_dict())
