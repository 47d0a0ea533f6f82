"""On corrupted digits: what the choice is worth, and that it does no harm. Trends, with room to spare."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from batchnorm.demo.data import load_digits
from batchnorm.models import adapt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    data = load_digits()
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for index in torch.randperm(len(data.train_x)).split(64):
            if len(index) > 1:
                optimizer.zero_grad()
                functional.cross_entropy(model(data.train_x[index]), data.train_y[index]).backward()
                optimizer.step()
    return model.eval(), data.test_x, data.test_y


@torch.no_grad()
def error(model, x, y, size=500):
    guesses = torch.cat([model(batch).argmax(1) for batch in x.split(size)])
    return 100 * float((guesses != y).float().mean())


def contrast(x):
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * 0.35 + mean


def test_contrast_is_repaired_from_64_images(digits):
    model, x, y = digits
    dark = contrast(x)
    assert error(model, dark, y) > 40
    result = adapt(model, dark[:64].split(16))
    assert result.choice.mode == "domain"
    assert error(model, dark, y) < 15
    assert error(model, dark, y, size=1) == error(model, dark, y)
    result.undo()


def test_clean_streams_are_left_alone_in_any_order(digits):
    model, x, y = digits
    stored = error(model, x, y)
    order = y.argsort(stable=True)
    one = x[y == 3]
    for stream in (x, x[:64], x[order], x[order][:128], one):
        result = adapt(model, stream.split(16))
        assert result.choice.mode == "stored"
        result.undo()
    # What it refuses: the batch's own statistics on the sorted stream.
    result = adapt(model, mode="batch")
    assert error(model, x[order], y[order], 16) > stored + 40
    result.undo()


def test_a_sorted_stream_that_is_all_there_is_can_be_pooled(digits):
    model, x, y = digits
    order = y.argsort(stable=True)
    dark = contrast(x)[order]
    result = adapt(model, dark.split(16))
    assert "sorted" in result.choice.reason
    result.undo()
    result = adapt(model, dark.split(16), if_sorted="pool")
    assert error(model, dark, y[order], 16) < 15
    result.undo()


def test_streams_of_few_classes_in_any_order_are_left_alone(digits):
    """One class of 95 %, and three and five classes: their statistics differ, and adapting to them costs most."""
    model, x, y = digits
    draw = torch.Generator().manual_seed(0)
    for classes in ([3], [7], [1, 4, 8], [0, 2, 5], [1, 3, 5, 7, 9]):
        share = torch.full((10,), 0.05 / 9 if len(classes) == 1 else 0.0)
        share[classes] = 0.95 / len(classes)
        index = torch.multinomial((share / y.bincount(minlength=10))[y], 320, True, generator=draw)
        stored = error(model, x[index], y[index])
        result = adapt(model, x[index].split(16))
        assert error(model, x[index], y[index]) <= stored + 1, str(result.choice)
        result.undo()
        result = adapt(model, x[index].split(16), "domain")  # what it refuses
        harm = error(model, x[index], y[index]) - stored
        assert harm > (30 if len(classes) == 1 else 5 if len(classes) == 3 else 0)
        result.undo()
