"""The set-up of the published row, and where the data comes from."""

import gzip
import struct

import fashion_mnist
import pytest
import torch
from torch import nn

import batchnorm


def write(path, magic, array):
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(f">i{array.dim()}i", magic, *array.shape) + bytes(array.flatten().tolist()))


def test_the_files_are_read_as_pixels_in_0_to_1(tmp_path):
    images = torch.arange(2 * 28 * 28, dtype=torch.uint8).view(2, 28, 28)
    for part in ("train", "t10k"):
        write(tmp_path / f"{part}-images-idx3-ubyte.gz", 2051, images)
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", 2049, torch.tensor([7, 3], dtype=torch.uint8))
    data = fashion_mnist.load(tmp_path)
    assert torch.equal(data.test_x, images.view(2, 784) / 255)
    assert data.train_y.tolist() == [7, 3]


def test_a_machine_without_debian_tools_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="needs apt-get; it was not found"):
        fashion_mnist.load(tmp_path / "nothing")


def test_a_package_that_cannot_be_fetched_is_an_error_that_says_why(tmp_path, monkeypatch):
    for tool in ("apt-get", "dpkg-deb"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'E: no such host' >&2\nexit 100\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(SystemExit, match="could not be fetched: E: no such host"):
        fashion_mnist.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", fashion_mnist.NORMS)
def test_the_perceptron_has_no_biases_but_the_norms_and_decays_linear_weights_alone(name):
    model = fashion_mnist.perceptron(fashion_mnist.NORMS[name])
    assert [tuple(m.weight.shape) for m in model if isinstance(m, nn.Linear)] == [(500, 784), (300, 500), (10, 300)]
    assert all(m.bias is None for m in model if isinstance(m, nn.Linear))
    linear, *norms = fashion_mnist.sgd(model).param_groups
    assert linear["weight_decay"] == 1e-4
    assert [p.shape[0] for p in linear["params"]] == [500, 300, 10]
    assert [group["weight_decay"] for group in norms] == ([] if name == "none" else [0.0])
    assert sum(len(group["params"]) for group in norms) == (0 if name == "none" else 4)


def test_the_online_layers_are_the_published_ones():
    layer = fashion_mnist.online(4).train()
    assert layer.recipe.coupling == batchnorm.layers.OnlineNorm(0.99, None, layer_scaling=True)
    assert layer.momentum == 0.001
    y = layer(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(y.square().mean(1), torch.ones(16), atol=1e-3)


def test_the_summary_counts_runs_and_takes_both_epochs():
    runs = [{"method": "online", "seed": s, "accuracy": [80.0] * 8 + [88.0 + s, 89.0]} for s in range(2)]
    found = fashion_mnist.summary(runs)["online"]
    assert found["runs"] == 2
    assert found["last"] == {"mean": 89.0, "sd": 0.0, "se": 0.0}
    assert found["published_epoch"] == {"mean": 88.5, "sd": 0.707, "se": 0.5}
