"""Networks as others write them: graphs that FX cannot trace, frozen copies, layers that draw in eval mode."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

import batchnorm
from batchnorm import BatchNormError
from batchnorm.models.find import frozen_eps


def trained(model, *inputs):
    torch.manual_seed(1)
    model.train()
    for _ in range(3):
        model(*inputs)
    return model.eval()


class Step(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), act

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Shared(nn.Module):
    """One activation in two parts of a model that cannot be traced whole."""

    def __init__(self):
        super().__init__()
        act = nn.ReLU()
        self.a, self.b = Step(act), Step(act)

    def forward(self, x):
        return x if x.sum() > 1e9 else self.b(self.a(x))


class Flags(nn.Module):
    """Optional arguments and a flag whose defaults the example does not pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x, mask=None, features=False):
        x = self.bn(self.conv(x)).relu()
        if mask is not None:
            x = x * mask
        return x if features else self.head(x.mean((2, 3)))


class OwnLinear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Masked(OwnLinear):
    def forward(self, x):
        return functional.linear(x, self.weight * (self.weight > 0), self.bias)


class Listed(nn.Module):
    """Parts in a list and a dict, a loop over names, a branch on a size, and a dict that comes out."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleDict({"a": nn.ModuleList([Step(nn.ReLU())]), "b": nn.ModuleList([Step(nn.ReLU())])})

    def forward(self, x, *names, **options):
        for name in names or self.stages:
            for step in self.stages[name]:
                x = step(x) if x.numel() else x
        return {"features": x.transpose(2, 3)}


IMAGES = torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "shared": (Shared, IMAGES),
    "flags": (Flags, IMAGES),
    "listed": (Listed, IMAGES),
    "graph module": (
        lambda: fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())),
        IMAGES,
    ),
    "own linear": (lambda: nn.Sequential(OwnLinear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), OwnLinear(5, 2)), ROWS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_folded(name):
    make, x = NETWORKS[name]
    model = trained(make(), x)
    result = batchnorm.fold(model, x, timing=0)
    assert result.left == {}
    assert result.exact_error < 1e-14
    assert result.max_rel_error < 1e-5


def test_the_input_of_a_recorded_run_is_called_the_input():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            return x if x.sum() > 1e9 else self.bn(x) * x

    assert batchnorm.fold(First().eval(), torch.randn(4, 3), timing=0).left == {
        "bn": "its input comes from the input; its output goes to mul"
    }


def test_a_linear_layer_that_changes_its_weight_is_not_taken_for_a_plain_one():
    model = trained(nn.Sequential(Masked(4, 5), nn.BatchNorm1d(5)), ROWS)
    result = batchnorm.fold(model, ROWS, timing=0)
    assert set(result.left) == {"1"}
    assert type(result.model[0]) is Masked


@pytest.mark.parametrize("name", NETWORKS)
def test_activations_are_fused_or_the_reason_is_said(name, capsys):
    make, x = NETWORKS[name]
    model = batchnorm.convert(trained(make(), x))
    before = tree_leaves(model(x))
    batchnorm.fuse_activations(model, x)
    assert torch.allclose(*tree_leaves(model(x)), *before, atol=1e-6)
    fused = sum(layer.activation is not None for layer in batchnorm.models.batch_norm_layers(model).values())
    said = capsys.readouterr().err
    if name == "flags":
        assert fused == 0
        assert "Fused 0 activations of 1" in said
        assert "relu after bn was left: it is a function in forward" in said
    else:
        assert fused == len(batchnorm.models.batch_norm_layers(model))
        assert said == ""


def test_fusing_keeps_hooks_and_gives_back_the_same_object(capsys):
    act = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(3, 4), batchnorm.BatchNorm1d(4), act)
    batchnorm.fuse_activations(model)
    assert isinstance(model[2], nn.Identity)
    stock = batchnorm.to_stock(model)
    assert stock[2] is act
    assert act.inplace
    seen = []
    act.register_forward_hook(lambda *args: seen.append(1))
    batchnorm.fuse_activations(batchnorm.convert(stock))
    stock(torch.randn(4, 3))
    assert seen == [1]
    assert "2 was left: it has hooks" in capsys.readouterr().err


class Frozen(nn.Module):
    """As detection transformers copy it: eps is a number in forward."""

    def __init__(self, width, eps=1e-5, relu=False):
        super().__init__()
        self.small, self.relu = eps, relu
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.1)

    def forward(self, x):
        weight, bias, mean, var = (b.reshape(1, -1, 1, 1) for b in self.buffers())
        scale = weight * (var + self.small).rsqrt()
        y = x * scale + (bias - mean * scale)
        return y.relu() if self.relu else y


def test_frozen_copies_are_known_by_what_they_compute():
    assert frozen_eps(Frozen(5)) == 1e-5
    assert frozen_eps(Frozen(5, 1e-3)) == 1e-3
    assert frozen_eps(Frozen(5, relu=True)) is None
    assert frozen_eps(nn.BatchNorm2d(5)) is None
    net = nn.Sequential(nn.Conv2d(4, 5, 3), Frozen(5, 1e-3)).eval()
    result = batchnorm.fold(net, IMAGES, timing=0)
    assert result.left == {}
    assert torch.allclose(result.model(IMAGES), net(IMAGES), atol=1e-5)


@pytest.mark.parametrize("verb", ["convert", "freeze", "recalibrate", "diagnose"])
def test_where_all_layers_are_frozen_copies_the_error_points_on(verb):
    net = nn.Sequential(nn.Conv2d(4, 5, 3), Frozen(5))
    data = ([IMAGES],) if verb in ("recalibrate", "diagnose") else ()
    with pytest.raises(BatchNormError, match=r"those of 1 \(Frozen\) are constants: fold takes such layers"):
        getattr(batchnorm, verb)(net, *data)


class Prenet(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, training=True)


def test_a_model_that_draws_in_eval_mode_has_not_converged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), Prenet(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    result = batchnorm.recalibrate(model, torch.randn(64, 4).split(16))
    assert not result.converged
    assert 0.05 < result.drawn < 1
    assert "draws random numbers in eval mode" in str(result).replace("\n", " ")
    model[2] = nn.Dropout()
    result = batchnorm.recalibrate(model, torch.randn(64, 4).split(16))
    assert result.converged
    assert result.drawn == 0


def test_a_graph_module_saved_whole_is_inspected(tmp_path):
    model = trained(fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))), IMAGES)
    torch.save(model, tmp_path / "whole.pt")
    said = " ".join(str(batchnorm.inspect_checkpoint(tmp_path / "whole.pt")).split())
    assert "1 batch norm layer, 5 channels" in said


def test_fold_says_where_float64_cannot_run():
    class Casts(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    result = batchnorm.fold(trained(Casts(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)), IMAGES), IMAGES, timing=0)
    assert result.exact_error != result.exact_error
    assert "not checked in float64" in str(result)


def test_refusals_are_short_and_name_a_few():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(BatchNormError, match=r"0 \(Own\), 1 \(Own\), 2 \(Own\) and 37 more") as caught:
        batchnorm.convert(nn.Sequential(*[Own(3) for _ in range(40)]))
    assert len(str(caught.value)) < 250


class Scaled(batchnorm.BatchNorm2d):
    """A subclass of this package's layer with a forward of its own, at the top level so that pickle finds it."""

    def forward(self, input):
        return super().forward(input) * 2


def test_subclasses_of_our_layers_are_adapted_with_their_own_forward():
    torch.manual_seed(0)
    layer, data = Scaled(3), [torch.randn(16, 3, 4, 4) * 3 + 1 for _ in range(4)]
    model = nn.Sequential(layer).eval()
    before = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    result = batchnorm.adapt(model, mode="batch")
    x = data[0]
    expected = 2 * functional.batch_norm(x, None, None, training=True, eps=layer.eps)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    result.undo()
    assert type(layer) is Scaled
    assert {name: value for name, value in vars(layer).items() if not name.startswith("_")} == before
    assert torch.equal(model(x), 2 * functional.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps))


class BatchNormAct2d(nn.BatchNorm2d):
    """Named as timm's, with a forward of its own."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "verb",
    [
        batchnorm.convert,
        batchnorm.fuse_activations,
        lambda model: batchnorm.adapt(model, mode="batch"),
        lambda model: batchnorm.accumulate(model).__enter__(),
    ],
)
def test_refusals_of_timms_layers_name_what_takes_them(verb):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
    with pytest.raises(BatchNormError, match=r"1 .*batchnorm\.interop\.trainers\.timm\.convert"):
        verb(model)
    assert type(model[1]) is BatchNormAct2d


class OfTimms(batchnorm.BatchNorm2d, BatchNormAct2d):
    """As `interop.trainers.timm.convert` makes them."""


def test_to_stock_of_timms_layers_names_what_gives_them_back():
    with pytest.raises(BatchNormError, match=r"batchnorm\.interop\.trainers\.timm\.to_stock"):
        batchnorm.to_stock(nn.Sequential(OfTimms(3)))


def test_unfreezing_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    before = [set(vars(module)) for module in model.modules()]
    batchnorm.freeze(model)
    model.train()(torch.randn(2, 3, 4, 4))
    model.eval()(torch.randn(2, 3, 4, 4))
    batchnorm.unfreeze(model)
    assert [set(vars(module)) for module in model.modules()] == before
