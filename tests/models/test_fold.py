"""Fold: every case is right on inputs the fold never saw, or left with its reason; the model given never changes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import batchnorm
from batchnorm.layers import METHODS
from batchnorm.models import ChannelAffine, fold, freeze
from batchnorm.models.graph.flow import flow_of
from tests.subjects import Subject


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics, weights and biases of every batch norm layer as training could leave them; float64, eval."""
    g = torch.Generator().manual_seed(seed)
    for layer in batchnorm.models.batch_norm_layers(model).values():
        with torch.no_grad():
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=g))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=g) * 3 + 0.1)
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.copy_(torch.randn(layer.num_features, generator=g))
    return model.double().eval()


def folded(model: nn.Module, x, **options):
    """Fold on x; the result is exact on x and on another input of another batch size, and the model is untouched."""
    before = copy.deepcopy(model.state_dict())
    result = fold(model, x, timing=0, **options)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        for new in (x, torch.randn(x.shape[0] + 3, *x.shape[1:], dtype=x.dtype)):
            torch.testing.assert_close(result.model(new), model(new), rtol=1e-9, atol=1e-9)
    assert result.max_rel_error < 1e-9
    return result


def left_over(result) -> list[str]:
    return [type(m).__name__ for m in result.model.modules() if "BatchNorm" in type(m).__name__]


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
STOCK = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_into_the_convolution_before(rank, transposed, bias, groups):
    conv = CONVOLUTIONS[rank][transposed](4, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
    result = folded(trained(nn.Sequential(conv, STOCK[rank](8), nn.ReLU())), random(2, 4, *[5] * rank))
    assert result.left == {}
    assert left_over(result) == []
    assert type(result.model[1]) is nn.Identity


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("groups", [1, 2])
def test_before_a_convolution_that_pads_with_its_own_values(groups, mode):
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups, padding_mode=mode)
    result = folded(trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), conv)), random(2, 4, 5, 5))
    assert result.layers["1"].went == "2"


@pytest.mark.parametrize("padding", [1, (1, 2), "same"])
def test_zero_padding_is_refused_and_named_or_made_exact(padding):
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=padding, groups=2)))
    x = random(2, 4, 6, 6)
    refused = folded(model, x)
    assert "pads with zeros" in refused.left["1"]
    assert isinstance(refused.model[1], ChannelAffine)
    explicit = folded(model, x, padding="explicit")
    assert explicit.left == {}
    # What ignoring the border would have given: the interior alone is right.
    naive = copy.deepcopy(model)
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    shift = model[1].bias - model[1].running_mean * scale
    with torch.no_grad():
        w = model[2].weight.view(2, 2, 2, 3, 3)
        naive[2].weight.copy_((w * scale.view(2, 1, 2, 1, 1)).view_as(model[2].weight))
        naive[2].bias += (w * shift.view(2, 1, 2, 1, 1)).sum((2, 3, 4)).flatten()
    naive[1] = nn.Identity()
    gap = (naive(x) - model(x)).abs().amax((0, 1))
    assert gap[2:-2, 2:-2].max() < 1e-12
    assert gap.max() > 0.1


def test_a_dead_channel_cannot_be_padded():
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    with torch.no_grad():
        model[1].weight[2] = 0.0
    assert "too small" in folded(model, random(2, 4, 6, 6), padding="explicit").left["1"]
    with torch.no_grad():
        model[1].bias[2] = 0.0
    assert folded(model, random(2, 4, 6, 6), padding="explicit").left == {}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_after_an_activation_into_the_next_map(rank, groups):
    before, after = CONVOLUTIONS[rank][0](3, 4, 3), CONVOLUTIONS[rank][0](4, 8, 3, groups=groups, bias=False)
    model = trained(nn.Sequential(before, nn.ReLU(), STOCK[rank](4), nn.Dropout(), after))
    assert folded(model, random(2, 3, *[7] * rank)).layers["2"].went == "4"


def test_before_a_transposed_convolution():
    point = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2))
    assert folded(trained(point), random(2, 4, 5, 5)).left == {}
    wide = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, groups=2)))
    assert "transposed" in folded(wide, random(2, 4, 5, 5)).left["1"]
    with torch.no_grad():
        wide[1].bias.zero_()
        wide[1].running_mean.zero_()
    assert folded(wide, random(2, 4, 5, 5)).left == {}


class Through(nn.Module):
    """Modules with functions between them."""

    def __init__(self, function, *modules):
        super().__init__()
        self.parts, self.function = nn.ModuleList(modules), function

    def forward(self, x):
        return self.function(x, *self.parts)


def test_linear_of_two_axes_and_the_layout_of_three():
    assert folded(trained(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))), random(4, 3)).left == {}
    # (N, C, L): the linear layer's outputs are positions, even where C == L.
    wrong = folded(trained(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))), random(4, 5, 3))
    assert "not the output channels" in wrong.left["1"]
    # (N, L, C): they are channels.
    last = nn.Sequential(nn.Linear(3, 5), batchnorm.BatchNorm(5, channel_axis=-1), nn.ReLU())
    assert folded(trained(last), random(4, 5, 3)).left == {}
    moved = Through(lambda x, a, b: b(a(x).transpose(1, 2)).transpose(1, 2), nn.Linear(3, 5), nn.BatchNorm1d(5))
    assert folded(trained(moved), random(4, 5, 3)).left == {}
    image = Through(lambda x, a, b: b(a(x).permute(0, 3, 1, 2)), nn.Linear(3, 5), nn.BatchNorm2d(5))
    assert folded(trained(image), random(4, 5, 5, 3)).left == {}
    rows = Through(
        lambda x, a, b: (lambda y: b(y.flatten(0, 1)).reshape_as(y))(a(x)), nn.Linear(3, 5), nn.BatchNorm1d(5)
    )
    assert folded(trained(rows), random(4, 5, 3)).left == {}
    one = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(1))
    assert folded(trained(one), random(4, 1, 3)).left == {}


def test_before_a_linear_layer_in_every_layout():
    assert folded(trained(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3))), random(5, 4)).left == {}
    assert (
        "not the input channels"
        in folded(trained(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3))), random(5, 4, 4)).left["1"]
    )
    flat = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 9, 3, bias=False))
    assert folded(trained(flat), random(5, 4, 3, 3)).left == {}
    last = nn.Sequential(nn.ReLU(), batchnorm.BatchNorm(4, channel_axis=-1), nn.Linear(4, 3))
    assert folded(trained(last), random(5, 4, 4)).left == {}
    moved = Through(lambda x, a, b: b(a(x).transpose(-1, 1)), nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert folded(trained(moved), random(5, 4, 4)).left == {}


def between(*what, conv=True):
    """ReLU, batch norm, what keeps constants, and a map."""
    return trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), *what, nn.Conv2d(4, 6, 3) if conv else nn.Linear(4, 6)))


class Call(nn.Module):
    """A function as a module that is looked into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


KEEPING = {
    "reflection": (nn.ReflectionPad2d(1),),
    "replication": (nn.ReplicationPad2d((1, 0, 2, 1)),),
    "circular": (nn.CircularPad2d(1),),
    "pooling": (nn.AvgPool2d(2, 1),),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(3),),
    "nearest": (nn.Upsample(scale_factor=2),),
    "bilinear": (nn.UpsamplingBilinear2d(scale_factor=2),),
    "pad": (Call(lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect")),),
    "pad by name": (Call(lambda x: functional.pad(x, pad=[1, 1, 0, 2], mode="replicate")),),
    "interpolate": (Call(lambda x: functional.interpolate(x, size=(9, 9), mode="bicubic")),),
    "avg_pool2d": (Call(lambda x: functional.avg_pool2d(x, 2)),),
    "adaptive_avg_pool2d": (Call(lambda x: functional.adaptive_avg_pool2d(x, (4, 5))),),
    "kept axes": (Call(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3)),),
}
# expand is no move that is known, and says so.
LEFT = {"kept axes": "its output goes to expand"}


@pytest.mark.parametrize("name", KEEPING)
def test_through_padding_pooling_and_resizing_that_keep_constants(name):
    left = folded(between(*KEEPING[name]), random(2, 4, 6, 6)).left
    assert left.keys() == ({"1"} if name in LEFT else set())
    assert LEFT.get(name, "") in left.get("1", "")


@pytest.mark.parametrize(
    "pooled",
    [
        (nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (Call(lambda x: x.mean((2, 3))),),
        (Call(lambda x: torch.mean(x, dim=[-1, -2])),),
        (Call(lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),),
        (Call(lambda x: x.mean(3).unsqueeze(1).squeeze(1).mean(2)),),
    ],
)
def test_through_a_global_average_into_the_head(pooled):
    assert folded(between(*pooled, conv=False), random(3, 4, 5, 6)).left == {}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (nn.ZeroPad2d(1), "its output goes to 2 (ZeroPad2d)"),
        (nn.AvgPool2d(2, padding=1), "its output goes to 2 (AvgPool2d)"),
        (nn.AvgPool2d(2, ceil_mode=True), "its output goes to 2 (AvgPool2d)"),
        (nn.AvgPool2d(2, divisor_override=3), "its output goes to 2 (AvgPool2d)"),
        (nn.MaxPool2d(2), "its output goes to 2 (MaxPool2d)"),
        (Call(lambda x: functional.pad(x, (1, 1, 1, 1))), "its output goes to pad"),
        (Call(lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1)), "its output goes to expand"),
        (Call(lambda x: functional.interpolate(x.transpose(1, 2), size=(4, 14)).transpose(1, 2)), "not the input"),
    ],
)
def test_what_changes_a_constant_or_mixes_channels_is_no_way_through(what, reason):
    assert reason in folded(between(what), random(2, 4, 7, 7)).left["1"]


def test_one_layer_before_several_maps():
    def heads(x, bn, q, k, v):
        x = bn(x.relu())
        return q(x) * k(x) + v(x)

    model = Through(heads, nn.BatchNorm1d(4), *(nn.Linear(4, 3) for _ in range(3)))
    result = folded(trained(model), random(5, 4))
    assert result.layers["parts.0"].went == "parts.1, parts.2, parts.3"
    also = Through(lambda x, bn, q: q(bn(x.relu())) + bn(x.relu()).sum(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    assert "parts.0" in folded(trained(also), random(5, 4)).left


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def test_residual_networks_and_preactivation():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Residual(4), Residual(4), nn.Flatten(), nn.Linear(64, 2)
    )
    assert folded(trained(model), random(2, 3, 6, 6)).left == {}
    pre = Through(lambda x, bn, conv: x + conv(torch.relu(bn(x))), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    left = folded(trained(pre), random(2, 3, 6, 6)).left["parts.0"]
    assert "comes from the input" in left
    assert "goes to relu" in left


def test_a_linear_map_whose_output_is_used_elsewhere():
    model = Through(lambda x, conv, bn: bn(conv(x)) + conv(x).sum(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    skip = Through(lambda x, conv, bn: (lambda y: bn(y) + y)(conv(x)), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for case in (model, skip):
        assert "also goes to" in folded(trained(case), random(2, 3, 6, 6)).left["parts.1"]


def test_a_map_between_two_layers_absorbs_both():
    chain = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    result = folded(trained(chain), random(2, 4, 6, 6), layers=True)
    assert {row.went for row in result.layers.values()} == {"2"}
    assert all(row.max_rel_error < 1e-12 for row in result.layers.values())


def test_shared_modules():
    conv, bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    # The pair is used twice: one fold serves both.
    assert folded(trained(nn.Sequential(conv, bn, nn.ReLU(), conv, bn)), random(2, 4, 6, 6)).left == {}
    # One layer after two maps goes into both.
    two = nn.Sequential(nn.Conv2d(4, 4, 3), bn, nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), bn)
    assert folded(trained(two), random(2, 4, 6, 6)).layers["1"].went == "0, 3"
    # One map before two layers can hold neither.
    heads = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4))
    assert set(folded(trained(heads, 1), random(2, 4, 6, 6)).left) == {"1", "4"}
    # Tied weights are untied in the copy.
    tied = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    tied[3].weight = tied[0].weight
    assert folded(trained(tied), random(2, 4, 6, 6)).left == {}
    # A weight that something else reads must stay what it was.
    read = Through(lambda x, conv, bn: bn(conv(x)) + conv.weight.sum(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert "past its forward" in folded(trained(read), random(2, 3, 6, 6)).left["parts.1"]


def test_layers_without_weight_bias_or_freedom():
    for layer in (
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, bias=False),
        freeze(nn.BatchNorm2d(4)),
        freeze(batchnorm.BatchNorm2d(4)),
        nn.SyncBatchNorm(4),
        batchnorm.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.2),
    ):
        model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 2, 1)))
        assert folded(model, random(2, 3, 6, 6)).left == {}
    no_statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).double()
    result = fold(no_statistics, random(2, 3, 6, 6), timing=0)
    assert "no running statistics" in result.left["1"]
    assert isinstance(result.model[1], nn.BatchNorm2d)


class FrozenBatchNorm2d(nn.Module):
    """The constant layer of detection libraries, written anew."""

    def __init__(self, n):
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.randn(n))
        self.register_buffer("running_var", torch.rand(n) + 0.1)

    def forward(self, x):
        scale = (self.weight * (self.running_var + self.eps).rsqrt()).view(1, -1, 1, 1)
        return x * scale + self.bias.view(1, -1, 1, 1) - self.running_mean.view(1, -1, 1, 1) * scale


class WithActivation(nn.BatchNorm2d):
    """A subclass that holds its activation, as timm's do."""

    def __init__(self, n):
        super().__init__(n)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


class Odd(nn.BatchNorm2d):
    """A subclass whose forward is something else."""

    def forward(self, x):
        return super().forward(x).tanh()


def test_other_peoples_layers():
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU()).double().eval()
    assert folded(frozen, random(2, 3, 6, 6)).left == {}
    act = trained(nn.Sequential(nn.Conv2d(3, 4, 3), WithActivation(4), nn.Conv2d(4, 4, 3)))
    result = folded(act, random(2, 3, 6, 6))
    assert result.left == {}
    assert isinstance(result.model[1], nn.SiLU)
    odd = folded(trained(nn.Sequential(nn.Conv2d(3, 4, 3), Odd(4))), random(2, 3, 6, 6))
    assert "would differ" in odd.left["1"]
    assert type(odd.model[1]) is Odd


def test_maps_that_do_not_follow_their_weight_are_undone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)

    result = folded(trained(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4))), random(2, 3, 6, 6))
    assert "would differ" in result.left["1"]
    assert isinstance(result.model[1], ChannelAffine)


def test_parametrized_weights_are_baked_in_and_hooks_are_respected():
    weighted = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    result = folded(trained(weighted), random(2, 3, 6, 6))
    assert result.left == {}
    assert type(result.model[0]) is nn.Conv2d
    hooked = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    hooked[0].register_forward_hook(lambda m, a, y: y + 1)
    assert "forward hooks" in folded(hooked, random(2, 3, 6, 6)).left["1"]
    watched = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    seen = []
    watched[1].register_forward_hook(lambda m, a, y: seen.append(y))
    assert "forward hooks" in folded(watched, random(2, 3, 6, 6)).left["1"]
    assert isinstance(fold(watched, random(2, 3, 6, 6)).model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_absorbed_or_says_why(method):
    torch.manual_seed(0)
    model = Subject(method, 4, rank=2, dtype=torch.float64)
    if method == "cbn":  # its own forward holds the map; the plain ones go behind one
        model = nn.Sequential(model.before, model.layer)
    elif method not in ("masked", "weighted"):
        model = nn.Sequential(nn.Linear(4, 4).double(), model.layer)
    for _ in range(3):
        model(random(8, 4)).sum().backward()
    result = folded(model.eval(), random(8, 4))
    reasons = {"example-weighing": "at hand", "masked": "mask", "weighted": "mask or weights", "online": "follows"}
    if method in reasons:
        assert [reasons[method] in reason for reason in result.left.values()] == [True]
    else:
        assert result.left == {}


class Untraceable(nn.Module):
    """A branch on a value, which symbolic tracing cannot follow, around parts that it can."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU())
        self.block = Residual(4)
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.bn(self.conv(x)) if float(x.abs().sum()) >= 0 else x


def test_parts_of_a_model_that_cannot_be_traced():
    result = folded(trained(Untraceable()), random(2, 3, 6, 6))
    assert result.left == {}
    assert isinstance(result.model.bn, nn.Identity)


def test_parts_used_behind_the_back_of_their_owner_are_found_on_the_example():
    class Behind(Untraceable):
        def forward(self, x):
            return super().forward(x) + self.stem[0](x)

    result = folded(trained(Behind()), random(2, 3, 6, 6))
    assert "stem.0" in result.left["stem.2"] or "goes" in result.left["stem.2"]

    class Reads(Untraceable):
        def forward(self, x):
            return super().forward(x) + self.stem[0].weight.sum() + self.stem[2].weight.sum()

    result = folded(trained(Reads()), random(2, 3, 6, 6))
    assert "stem.2" in result.left
    assert "block.bn1" not in result.left


def test_what_is_left_is_affine_or_kept():
    model = trained(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()))
    affine = folded(model, random(2, 3, 6, 6))
    assert isinstance(affine.model[1], ChannelAffine)
    kept = folded(model, random(2, 3, 6, 6), rest="keep")
    assert isinstance(kept.model[1], nn.BatchNorm2d)
    assert affine.left == kept.left
    # No sample reaches another's output, in any mode: what differential privacy asks for.
    x = random(4, 3, 6, 6).requires_grad_()
    affine.model.train()(x)[0].sum().backward()
    assert x.grad[1:].abs().max() == 0
    root = folded(trained(nn.BatchNorm1d(3)), random(4, 3))
    assert isinstance(root.model, ChannelAffine)


def test_layers_the_example_does_not_reach_and_calls_with_more_than_an_input():
    idle = Through(lambda x, a, b, c: b(a(x)), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    assert folded(trained(idle), random(2, 3, 6, 6)).left == {"parts.2": "the example never reaches it"}
    residual = Through(lambda x, a, b: b(a(x), residual=x), nn.Conv2d(3, 3, 1), batchnorm.BatchNorm2d(3))
    result = folded(trained(residual), random(2, 3, 6, 6))
    assert "residual" in result.left["parts.1"]
    assert isinstance(result.model.parts[1], batchnorm.BatchNorm2d)


def test_float32_half_precision_and_layout():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))).float()
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    result = fold(model, x, layers=True)
    assert result.max_rel_error < 1e-5
    assert result.exact_error < 1e-12
    assert result.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert result.layers["1"].max_abs_error < 1e-5
    half = fold(copy.deepcopy(model).bfloat16(), x.bfloat16())
    assert half.model[0].weight.dtype == half.model(x.bfloat16()).dtype == torch.bfloat16
    assert half.exact_error < 1e-12  # the fold is right; what is left is rounding
    assert 0 < half.max_rel_error < 0.05


def test_ranges_and_the_table():
    model = trained(
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    )
    result = fold(model, random(2, 4, 5, 5), layers=True, timing=3)
    before, after = result.ranges["0"]
    expected = torch.stack([model[0].weight[g * 2 : g * 2 + 2, c].abs().max() for g in (0, 1) for c in range(3)])
    torch.testing.assert_close(before, expected)
    gain = model[1].weight.abs() / (model[1].running_var + model[1].eps).sqrt()
    torch.testing.assert_close(after, expected * gain)
    text = str(result)
    for word in ("Folded 1 of 2", "affine", "in float64", "before", "after", "comes from", "difference"):
        assert word in text
    assert result.speedup == result.seconds[0] / result.seconds[1]


def test_training_mode_dropout_and_outputs_of_any_structure():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

        def forward(self, x, scale=None):
            y = self.drop(self.bn(self.conv(x)))
            return {"y": y, "parts": (y.mean(), x if scale is None else x * scale)}

    model = trained(Several()).train()
    result = fold(model, {"x": random(2, 3, 6, 6)}, timing=0)
    assert result.left == {}
    assert model.training
    assert not result.model.training
    assert result.max_rel_error < 1e-12
    result = fold(model, (random(2, 3, 6, 6), random(2, 3, 6, 6)), timing=0)
    assert result.left == {}


def test_tracing_leaves_nothing_on_the_model_and_compiled_models_are_folded_before():
    def read(x, conv, bn):
        return bn(conv(x)) + sum(p.sum() for p in conv.parameters())

    model = trained(Through(read, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = set(vars(model))
    flow_of(model)
    assert set(vars(model)) == before
    assert "would differ" in folded(model, random(2, 3, 6, 6)).left["parts.1"]
    plain = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold(torch.compile(plain), random(2, 3, 6, 6), timing=0).left == {}


def test_errors():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    for wrong, words in (
        (lambda: fold(nn.Sequential(nn.Conv2d(3, 4, 3)), random(1, 3, 5, 5)), "must contain a batch norm layer"),
        (lambda: fold(model, random(1, 4, 5, 5)), "example_input must run"),
        (lambda: fold(model, "x"), "example_input must be a tensor"),
        (lambda: fold(model, random(1, 3, 5, 5), rest="drop"), "rest must be"),
        (lambda: fold(model, random(1, 3, 5, 5), padding="zero"), "padding must be"),
        (lambda: fold(model, random(1, 3, 5, 5), timing=-1), "timing must be"),
        (
            lambda: fold(nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), random(1, 3, 5, 5)),
            "must have been run once; 0.weight of a lazy layer",
        ),
        (lambda: ChannelAffine(torch.ones(2), torch.ones(3)), "vectors of one length"),
    ):
        with pytest.raises(batchnorm.BatchNormError, match=words):
            wrong()
