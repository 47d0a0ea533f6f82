"""What a layer's repr says is what it does, and a message says what to write: what it proposes is carried out."""

import re

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.layers import METHODS

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=0.001))


def refusal(call):
    with pytest.raises(batchnorm.BatchNormError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "given", "choice"),
    [
        ("renorm", {"rmax": 3}, "coupling=batchnorm.layers.Renorm(r_max=3)"),
        ("renorm", {"decay": 0.9}, "estimator=batchnorm.layers.EMA(sigma=True, correction=0, decay=0.9)"),
        ("renorm", {"momentum": 0.25}, "estimator=batchnorm.layers.EMA(sigma=True, correction=0, decay=0.75)"),
        ("mabn", {"window": 8}, "coupling=batchnorm.layers.MABN(window=8)"),
        ("example-weighing", {"prior": 5.0}, "inference=batchnorm.layers.Mixture(prior=5.0)"),
        ("batchnorm", {"debias": True}, "estimator=batchnorm.layers.EMA(debias=True)"),
        ("debiased", {"too_few": "population"}, "policy=batchnorm.layers.Policy(too_few='population')"),
        ("ghost", {"size": 2}, "extent=batchnorm.layers.Ghost(size=2)"),
        ("population", {"gradient": False}, "coupling=batchnorm.layers.PopulationCoupling(gradient=False)"),
    ],
)
def test_a_parameter_given_as_a_choice_is_told_where_it_is_set_and_that_works(method, given, choice):
    said = refusal(lambda: batchnorm.convert(network(), method, **given))
    assert said.startswith("a choice must be one of extent, estimator, coupling, inference, policy; it was ")
    assert said.endswith(choice)
    model = network()
    eval(f"batchnorm.convert(model, method, {choice})")
    ((name, value),) = given.items()
    held = getattr(model[1].recipe, choice.split("=")[0])
    if name == "momentum":
        assert (held.decay, model[1].momentum) == (0.75, 0.25)
    else:
        assert getattr(held, {"rmax": "r_max"}.get(name, name)) == value
    model(X)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_every_method_is_found_and_its_class_is_where_the_message_says(method):
    for choice in ("extent", "estimator", "coupling", "inference", "policy"):
        for name, value in vars(getattr(METHODS[method], choice)).items():
            said = refusal(lambda name=name, value=value: batchnorm.layers.recipe_for(method, **{name: value}))
            written = re.search(r"(extent|estimator|coupling|inference|policy)=(batchnorm\..*)$", said)
            assert written is not None, said
            if value is None or isinstance(value, bool | int | float | str):
                assert getattr(eval(written[2]), name) == value
            else:
                assert eval(written[2].split("(")[0]) is type(getattr(METHODS[method], choice))


@pytest.mark.parametrize(
    ("call", "end"),
    [
        (lambda: batchnorm.convert(network(), "debaised"), "it was 'debaised': did you mean 'debiased'?"),
        (lambda: batchnorm.BatchNorm2d(3, method="Re-Norm"), "it was 'Re-Norm': did you mean 'renorm'?"),
        (lambda: batchnorm.convert(network(), couplng=None), "it was 'couplng': did you mean 'coupling'?"),
        (lambda: batchnorm.convert(network(), colour=1), "as in coupling=batchnorm.layers.Renorm(r_max=3.0)"),
        (lambda: batchnorm.convert(network(), "magic"), "weighted, banks; it was 'magic'"),
    ],
)
def test_a_misspelt_name_is_told_the_one_that_was_meant(call, end):
    assert refusal(call).endswith(end)


@pytest.mark.parametrize(("method", "argument"), [("masked", "mask"), ("weighted", "weights=weights")])
def test_a_missing_mask_is_told_how_it_is_given_and_both_ways_work(method, argument):
    model, layer = batchnorm.convert(network(), method), batchnorm.BatchNorm2d(3, method=method)
    name = argument.split("=")[0]
    assert refusal(lambda: model(X)) == (
        f"{name} must be given to layer '1' (BatchNorm2d); it was None: call layer(x, {argument}), or run "
        f"the model inside batchnorm.masked(model, {argument})"
    )
    names = {"layer": layer, "model": model, "x": X, "batchnorm": batchnorm}
    names |= {"mask": torch.ones(4, 5, 5, dtype=torch.bool), "weights": torch.ones(4)}
    plain = nn.BatchNorm2d(3)(X)
    assert torch.allclose(eval(f"layer(x, {argument})", names), plain, atol=1e-6)
    with eval(f"batchnorm.masked(model, {argument})", names):
        assert torch.allclose(model(X), network()(X), atol=1e-6)


@pytest.mark.parametrize("method", ["online", "example-weighing"])
def test_a_layer_that_no_stock_one_equals_says_what_to_do_first(method):
    model = batchnorm.convert(network(), method)
    model(X)
    expected = nn.functional.batch_norm(model[0](X), model[1].running_mean, model[1].running_var)
    assert "call batchnorm.convert(model) first, which drops it" in refusal(lambda: batchnorm.to_stock(model))
    assert type(model[1]) is batchnorm.BatchNorm2d
    stock = batchnorm.to_stock(batchnorm.convert(model)).eval()
    assert type(stock[1]) is nn.BatchNorm2d
    assert torch.allclose(stock(X), expected, atol=1e-6)


def test_the_repr_shows_the_decay_that_is_used():
    layer = batchnorm.convert(nn.BatchNorm2d(3, momentum=0.001), "debiased")
    assert "momentum=0.001" in repr(layer)
    assert "decay=0.999, debias=True" in repr(layer)
    layer.momentum = 0.25
    assert "decay=0.75, debias=True" in repr(layer)
    layer.momentum = None
    assert "decay" not in repr(layer)
    assert "debias=True" in repr(layer)
    assert "estimator" not in repr(batchnorm.convert(nn.BatchNorm2d(3, momentum=0.001)))
