"""timm's layers, averages and freezing."""

import copy
import pickle

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop import to_torch
from batchnorm.interop.trainers.averages import recalibrate as recalibrate_average
from batchnorm.interop.trainers.timm import convert, to_stock
from tests.trainers.networks import DATA, LABELS, close, exact, layers, received, statistics

timm = pytest.importorskip("timm")
IMAGES = nn.functional.interpolate(DATA, 32)[:32]


def network(name="test_efficientnet"):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3)


def call(model):
    model(IMAGES)


def held(model):
    return [m for m in model.modules() if isinstance(m, timm.layers.BatchNormAct2d)]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_byobnet", "test_resnet"])
def test_recalibrated(name):
    model = network(name)
    result = batchnorm.recalibrate(model, IMAGES.split(8))
    assert len(result.layers) == len(layers(model)) > 5
    assert close(statistics(model), received(model, call))


def test_converted_and_back():
    model = network()
    kinds = [type(m) for m in layers(model)]
    assert timm.layers.BatchNormAct2d in kinds
    with pytest.raises(BatchNormError, match="BatchNormAct2d"):
        batchnorm.convert(copy.deepcopy(model))
    plain, before = copy.deepcopy(model), dict(model.state_dict())
    objects = [id(m) for m in model.modules()]
    assert convert(model) is model
    assert all(isinstance(m, batchnorm.BatchNorm2d) for m in layers(model))
    assert list(model.state_dict()) == list(before)
    # The same numbers in training, activations included, and the same statistics after it.
    model.train(), plain.train()
    assert torch.allclose(model(IMAGES), plain(IMAGES), atol=1e-5)
    assert close(statistics(model), statistics(plain), 1e-5)
    assert torch.allclose(model.eval()(IMAGES), plain.eval()(IMAGES), atol=1e-5)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES), model(IMAGES))
    expected = model(IMAGES)
    assert to_stock(model) is model
    assert [type(m) for m in layers(model)] == kinds
    assert [id(m) for m in model.modules()] == objects
    assert torch.allclose(model(IMAGES), expected, atol=1e-5)
    model.load_state_dict(before)


def test_converted_to_another_method():
    model = convert(network(), "renorm")
    assert all(isinstance(m.recipe.coupling, batchnorm.layers.Renorm) for m in layers(model))
    assert convert(model, "debiased") is model
    model.train()(IMAGES)
    # A debiased average of one batch is that batch.
    first = layers(model)[0]
    inputs = model.conv_stem(IMAGES).transpose(0, 1).flatten(1)
    assert torch.allclose(first.running_mean, inputs.mean(1), atol=1e-5)
    assert torch.allclose(first.running_var, inputs.var(1), rtol=1e-4)


def test_a_conversion_that_is_refused_changes_nothing():
    model = network()
    held(model)[0].running_mean.fill_(1.0)
    kinds = [type(m) for m in layers(model)]
    with pytest.raises(BatchNormError, match="count must be given"):
        convert(model, "cumulative")
    assert [type(m) for m in layers(model)] == kinds
    convert(model, inference=batchnorm.layers.Mixture(weight=0.5))
    kinds = [type(m) for m in layers(model)]
    with pytest.raises(BatchNormError, match="Mixture"):
        to_stock(model)
    assert [type(m) for m in layers(model)] == kinds


def test_folded():
    model = network().eval()
    batchnorm.recalibrate(model, IMAGES.split(8))
    for subject in (model, convert(copy.deepcopy(model))):
        folding = batchnorm.fold(subject, IMAGES)
        assert not folding.left
        assert not layers(folding.model)
        assert torch.allclose(folding.model(IMAGES), model(IMAGES), atol=1e-4)


def test_frozen_by_timm_and_by_this_package():
    model = network()
    batchnorm.recalibrate(model, IMAGES.split(8))
    expected = model.eval()(IMAGES)
    ours = batchnorm.freeze(copy.deepcopy(model))
    for subject in (copy.deepcopy(model), convert(copy.deepcopy(model))):
        theirs = timm.layers.freeze_batch_norm_2d(subject)
        assert torch.allclose(theirs.train()(IMAGES), expected, atol=1e-4)
        # timm's frozen layers have buffers; torch's, held by freeze, have the same output and can be let go.
        stock = to_torch(copy.deepcopy(theirs))
        assert torch.allclose(stock.train()(IMAGES), expected, atol=1e-4)
        assert layers(batchnorm.unfreeze(stock, affine=True))
    before = statistics(ours)
    assert torch.equal(ours.train()(IMAGES), expected)
    assert all(torch.equal(a, b) for a, b in zip(statistics(ours), before, strict=True))


@pytest.mark.parametrize("exclude_buffers", [False, True])
def test_the_averaged_copy_is_recalibrated(exclude_buffers):
    model = network("test_resnet")
    average = timm.utils.ModelEmaV3(model, decay=0.7, exclude_buffers=exclude_buffers)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(6):
        nn.functional.cross_entropy(model.train()(IMAGES), LABELS[:32]).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=step)
    before = statistics(model)
    assert not exact(average.module, call)
    recalibrate_average(average, IMAGES.split(8))
    assert exact(average.module, call)
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))


def test_diagnosed():
    model = network("test_resnet")
    report = batchnorm.diagnose(model, IMAGES.split(8))
    assert "BN101" in {finding.code for finding in report.findings}
    batchnorm.recalibrate(model, IMAGES.split(8))
    codes = {f.code for f in batchnorm.diagnose(model, IMAGES.split(8)).findings}
    assert "BN101" not in codes


def test_the_packages_own_verbs_point_here_and_take_what_comes_out():
    model = network()
    for verb in (batchnorm.convert, batchnorm.fuse_activations, lambda m: batchnorm.adapt(m, mode="batch")):
        with pytest.raises(BatchNormError, match=r"batchnorm\.interop\.trainers\.timm\.convert") as caught:
            verb(model)
        assert len(str(caught.value)) < 400
    convert(model).eval()
    kinds, before = [type(m) for m in layers(model)], model(IMAGES[:8])
    with pytest.raises(BatchNormError, match=r"batchnorm\.interop\.trainers\.timm\.to_stock"):
        batchnorm.to_stock(model)
    result = batchnorm.adapt(model, mode="batch")
    assert not torch.allclose(model(IMAGES[:8]), before)
    result.undo()
    assert torch.equal(model(IMAGES[:8]), before)
    assert [type(m) for m in layers(model)] == kinds
