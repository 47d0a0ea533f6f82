"""MONAI: networks from factories, batches that are dictionaries of tensors with a memory."""

import warnings

import pytest
import torch

import batchnorm
from batchnorm import BatchNormError
from batchnorm.interop.trainers.fields import Fields
from tests.trainers.networks import exact, layers, statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    monai = pytest.importorskip("monai")
    from monai.data import DataLoader, Dataset, MetaTensor
    from monai.networks.blocks import Convolution
    from monai.networks.nets import DenseNet, UNet

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
VOLUMES = torch.randn(8, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 2


def unet():
    torch.manual_seed(0)
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), num_res_units=1, norm="batch")


def loader():
    items = [{"image": MetaTensor(v), "label": v > 0, "path": str(index)} for index, v in enumerate(VOLUMES)]
    return DataLoader(Dataset(items), batch_size=3)


def call(model):
    model(VOLUMES)


def test_a_network_is_recalibrated_converted_and_folded():
    model = unet()
    assert len(layers(model)) == 3
    result = batchnorm.recalibrate(model, Fields(loader(), x="image"))
    assert (result.samples, result.unreached) == (8, ())
    assert exact(model, call)
    expected = model.eval()(VOLUMES)
    batchnorm.convert(model, "debiased")
    assert all(isinstance(m, batchnorm.BatchNorm3d) for m in layers(model))
    assert torch.allclose(model(VOLUMES), expected, atol=1e-5)
    folding = batchnorm.fold(model, VOLUMES)
    assert not folding.left
    assert not layers(folding.model)
    assert torch.allclose(folding.model(VOLUMES), expected, atol=1e-4)


def test_diagnosed_and_frozen():
    model = DenseNet(3, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1))
    report = batchnorm.diagnose(model, list(Fields(loader(), x="image")))
    assert len(report.layers) == len(layers(model)) > 3
    assert "BN101" in {f.code for f in report.findings}
    before = statistics(batchnorm.freeze(model))
    model.train()(VOLUMES)
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), before, strict=True))


def test_a_block():
    block = Convolution(3, 1, 4, norm=("batch", {"momentum": 0.3}))
    batchnorm.convert(block)
    assert [(type(m), m.momentum) for m in layers(block)] == [(batchnorm.BatchNorm3d, 0.3)]


def test_parts_that_are_not_there():
    with pytest.raises(BatchNormError, match="batches that hold 'volume'; a dict does not"):
        batchnorm.recalibrate(unet(), Fields(loader(), x="volume"))
    with pytest.raises(BatchNormError, match="at least one part of a batch"):
        Fields(loader())
