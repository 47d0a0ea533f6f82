"""Layers find their partners by map, name, shape and order, and what stays open is listed."""

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop import translate
from batchnorm.interop.pairing import tokens


def linen(*names, channels=3):
    params = {n: {"scale": np.full(channels, i + 2.0), "bias": np.zeros(channels)} for i, n in enumerate(names)}
    stats = {n: {"mean": np.zeros(channels), "var": np.ones(channels)} for n in names}
    return {"params": params, "batch_stats": stats}


def norms(*names, channels=3):
    return nn.ModuleDict({name: nn.BatchNorm1d(channels) for name in names})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layer1.0.bn1", "layer1/0/bn1"),
        ("layer1.0.bn1", "params/layer1/layers/0/bn1"),
        ("module.BlockA.fc", "block_a/fc"),
        ("conv2d_1", "Conv2D_1"),
    ],
)
def test_one_name_in_two_spellings(one, other):
    assert tokens(one) == tokens(other)


def test_names_pair_whatever_the_order():
    net = norms("a", "b", "c")
    result = translate(linen("c", "a", "b"), net, eps=1e-5)
    assert {row.by for row in result.layers} == {"name"}
    assert [float(net[n].weight[0].detach()) for n in "abc"] == [3.0, 4.0, 2.0]


def test_what_stands_before_all_names_does_not_count():
    net = norms("a", "b")
    params, stats = linen("a", "b").values()
    translate({"net": {name: {**params[name], **stats[name]} for name in "ab"}}, net, eps=0)
    assert float(net["b"].weight[0].detach()) == 3.0


def test_one_equal_name_among_others_proves_nothing():
    """torch counts from conv1, Flax from Conv_0: Conv_1 is conv2."""
    with pytest.raises(BatchNormError, match=r"shape \(3,\) is Norm_0, Norm_1 in the source and norm1, norm2"):
        translate(linen("Norm_0", "Norm_1"), norms("norm1", "norm2"), eps=1e-5)
    net = norms("norm1", "norm2")
    result = translate(linen("Norm_1", "Norm_0"), net, eps=1e-5, trust_numbers=True)
    assert [tuple(row) for row in result.layers] == [
        ("Norm_0", "norm1", "batch_norm", "order"),
        ("Norm_1", "norm2", "batch_norm", "order"),
    ]
    assert float(net["norm1"].weight[0].detach()) == 3.0


def test_numbers_are_numbers():
    names = [f"Norm_{i}" for i in range(12)]
    net = norms(*(f"bn{i}" for i in range(12)))
    translate(linen(*sorted(names)), net, eps=1e-5, trust_numbers=True)
    expected = {name: i + 2.0 for i, name in enumerate(sorted(names))}
    assert [float(net[f"bn{i}"].weight[0].detach()) for i in range(12)] == [expected[f"Norm_{i}"] for i in range(12)]


def test_a_map_leaves_the_rest_to_the_rules_and_wins_over_names():
    net = norms("a", "b")
    translate(linen("a", "b"), net, eps=1e-5, map={"a": "b"})
    assert [float(net[n].weight[0].detach()) for n in "ab"] == [3.0, 2.0]


def test_order_counts_if_the_whole_sequences_agree():
    def net(second):
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), second, nn.BatchNorm1d(3))

    class Named(nn.Module):
        def __init__(self, *children):
            super().__init__()
            for name, child in zip("fgbc", children, strict=True):
                self.add_module(name, child)

    one, other = net(nn.Linear(3, 3)), Named(*net(nn.Linear(3, 3)))
    assert {row.by for row in translate(one, other).layers} == {"order"}
    assert torch.equal(one[2].weight, other.b.weight)
    swapped = Named(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    with pytest.raises(BatchNormError, match="trust_numbers"):
        translate(one, swapped)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"map": {"x": "a"}}, "map must name layers of the source; it has no 'x'"),
        ({"map": {"a": "x"}}, "map must name layers of the target; it has no 'x'"),
        ({"map": {"a": "a", "b": "a"}}, "map must name every target layer once"),
        ({}, "eps must be given: the source does not record it for 'a'"),
        ({"eps": -1.0}, r"eps must be in \[0, 1\]"),
        ({"steps": -1}, "steps must be an integer of 0 or more"),
        ({"eps": 1e-5, "count": 1}, "count must be 2 or more"),
    ],
)
def test_wrong_arguments_change_nothing(choices, sentence):
    net = norms("a", "b")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(BatchNormError, match=sentence):
        translate(linen("a", "b"), net, **choices)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_layers_without_a_partner_are_named_or_noted():
    source, net = linen("a", "b"), norms("a", "c", channels=3)
    source["params"]["head"] = {"kernel": np.ones((3, 5)), "bias": np.zeros(5)}
    with pytest.raises(BatchNormError, match=r"no partner for 1 of the source \(head \(linear of shape \(5, 3\)\)\)"):
        translate(source, net, eps=1e-5, map={"b": "c"})
    result = translate(source, net, eps=1e-5, map={"b": "c"}, partial=True)
    assert any("Not carried over, for want of a partner: head." in note for note in result.notes)


def test_shapes_that_differ_have_no_partner():
    with pytest.raises(BatchNormError, match=r"a \(batch_norm of shape \(4,\)\).*a \(batch_norm of shape \(3,\)\)"):
        translate(linen("a", channels=4), norms("a"), eps=1e-5)


def test_a_bias_that_means_something_is_not_dropped():
    source = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(BatchNormError, match="target must have a bias for layer '0'"):
        translate(source, nn.Sequential(nn.Linear(2, 3, bias=False)))
    nn.init.zeros_(source[0].bias)
    bare = nn.Sequential(nn.Linear(2, 3, bias=False))
    translate(source, bare)
    assert torch.equal(bare[0].weight, source[0].weight)
    full = nn.Sequential(nn.Linear(2, 3))
    translate(bare, full)
    assert full[0].bias.tolist() == [0, 0, 0]


def test_a_batch_norm_without_affine_fills_one_with():
    source, target = nn.Sequential(nn.BatchNorm1d(2, affine=False)), nn.Sequential(nn.BatchNorm1d(2))
    nn.init.constant_(target[0].weight, 7.0)
    translate(source, target)
    assert target[0].weight.tolist() == [1, 1]
    nn.init.constant_(target[0].weight, 7.0)
    with pytest.raises(BatchNormError, match="one that is not 1 everywhere"):
        translate(target, source)


def test_an_overflow_is_refused():
    source = nn.Sequential(nn.BatchNorm1d(1))
    source[0].running_var.fill_(1e6)
    half = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    with pytest.raises(BatchNormError, match="running_var overflows float16"):
        translate(source, half)


def test_every_kind_of_convolution_goes_to_flax_and_back():
    def net():
        return nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Conv2d(4, 6, (3, 5), groups=2), nn.Conv3d(2, 3, 2), nn.ConvTranspose2d(3, 5, 3),
            nn.ConvTranspose1d(4, 2, 2), nn.BatchNorm3d(3), nn.LayerNorm(4), nn.Linear(3, 2),
        )  # fmt: skip

    one, other = net(), net()
    back = translate(translate(one, "flax").target, other, eps=1e-5, momentum=0.1)
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)
    assert len(back.layers) == 8


@pytest.mark.parametrize("thing", [3, [1], {}, (1, 2, 3), object()])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(BatchNormError, match="source must be a file, a torch module or state dict"):
        translate(thing, "torch")


def test_a_second_order_of_layers_does_not_touch_the_source():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = translate(net, "torch").target
    state["1.running_mean"].fill_(9.0)
    state["0.weight"].fill_(9.0)
    assert net[1].running_mean.tolist() == [0, 0]
    assert not (net[0].weight == 9.0).any()


def test_a_linear_layer_behind_a_flatten_is_noted_and_reordered():
    """The columns of (C, H, W) become those of (H, W, C), and back to the bit."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3 * 2 * 5, 4))
    noted = translate(net, "flax")
    assert noted.notes == ("If a flatten comes before it, give flatten={name: (C, H, W)} for 2.",)
    there = translate(net, "flax", flatten={"2": (3, 2, 5)})
    assert there.notes == ()
    x = torch.randn(6, 3, 2, 5)
    last = x.permute(0, 2, 3, 1).reshape(6, -1).numpy() @ there.target["params"]["2"]["kernel"]
    wanted = nn.functional.linear(x.flatten(1), net[2].weight).detach().numpy()
    np.testing.assert_allclose(last, wanted, rtol=1e-5, atol=1e-5)
    other = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(3 * 2 * 5, 4))
    translate(there.target, other, flatten={"2": (3, 2, 5)})
    assert torch.equal(other[2].weight, net[2].weight)
    same = translate(net, other, flatten={"2": (3, 2, 5)})
    assert torch.equal(other[2].weight, net[2].weight)
    assert same.notes == ()


def test_a_shared_layer_is_carried_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.again = self.norm

    source, target = Tied(), Tied()
    source.norm.running_mean.fill_(3.0)
    assert [row.source for row in translate(source, target).layers] == ["one", "norm"]
    assert target.again.running_mean.tolist() == [3, 3]


def test_this_package_s_layers_are_read_and_filled_where_a_stock_layer_could_stand():
    ours = nn.Sequential(batchnorm.BatchNorm1d(2, method="renorm"))
    ours[0].running_mean.fill_(3.0)
    mabn = nn.Sequential(nn.Linear(2, 2), batchnorm.BatchNorm1d(2, method="mabn"))
    assert len(translate(mabn, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).layers) == 2
    assert translate(ours, "torch").target["0.running_mean"].tolist() == [3, 3]
    stock = nn.Sequential(nn.BatchNorm1d(2))
    translate(stock, ours)
    assert ours[0].running_mean.tolist() == [0, 0]
    mixed = nn.Sequential(batchnorm.BatchNorm1d(2, inference=batchnorm.layers.Mixture(weight=0.5)))
    with pytest.raises(BatchNormError, match="depends on the example"):
        translate(mixed, "torch")


@pytest.mark.parametrize(
    ("source", "target", "choices", "sentence"),
    [
        (nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), {}, "target must track running statistics"),
        (nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2), {}, "source must track running statistics"),
        (nn.BatchNorm1d(2), nn.BatchNorm1d(2), {"count": {"x": 4}}, "count must be one number, .* for x"),
        ({"state_dict": nn.BatchNorm1d(2).state_dict()}, "torch", {}, "source must be a file, a torch module or state"),
        (
            {"a": {"mean": np.zeros(2), "var": np.ones(2), "scale": np.ones(1), "bias": np.zeros(2)}},
            nn.Sequential(nn.BatchNorm1d(2)),
            {"eps": 0.0},
            "source must hold weight of 'a' in the target's shape",
        ),
    ],
)
def test_what_cannot_be_carried_is_said(source, target, choices, sentence):
    with pytest.raises(BatchNormError, match=sentence):
        translate(source, target, **choices)


def test_a_map_says_that_a_square_kernel_is_of_a_transposed_convolution():
    """By shape alone Flax's (3, 3, 4, 4) kernels may be either."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    tree = translate(net, "flax").target
    tree["params"] = {"a": tree["params"]["1"], "b": tree["params"]["0"]}
    other = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    with pytest.raises(BatchNormError, match="conv of shape"):
        translate(tree, other)
    translate(tree, other, map={"a": "1"})
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_a_name_at_another_place_speaks_against_the_order():
    class Named(nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(2, 2))

    with pytest.raises(BatchNormError, match="trust_numbers"):
        translate(Named("stem", "x"), Named("y", "stem"))
    assert {row.by for row in translate(Named("stem", "x"), Named("stem", "y")).layers} == {"order"}


def test_like_is_of_the_target_s_format():
    with pytest.raises(BatchNormError, match="like must be of the target's format, flax"):
        translate(nn.Linear(2, 2), "flax", like=nn.Linear(2, 2))
