"""Files written by the frameworks are read without them, and files written here are read by them."""

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm import BatchNormError
from batchnorm.interop import translate
from tests.interop.networks import DECAY, EPS, INPUT, Keras, Torch, keras_net, keras_run, needs

pytestmark = pytest.mark.filterwarnings("default")
X = np.random.default_rng(3).normal(0.5, 1.5, INPUT).astype(np.float32)


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory):
    needs("keras", "h5py")
    folder, one = tmp_path_factory.mktemp("keras"), Keras(1)
    one.net.save(folder / "a.keras")
    one.net.save(folder / "a.h5")
    one.net.save_weights(folder / "a.weights.h5")
    return folder, one.infer(X)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_a_keras_file_into_torch(keras_files, name):
    folder, wanted = keras_files
    other = Torch(2, eps=0.1)
    result = other.fill(folder / name, **({"eps": EPS} if name == "a.weights.h5" else {}))
    np.testing.assert_allclose(other.infer(X), wanted, atol=1e-5)
    assert {row.by for row in result.layers} == {"name"}
    assert other.net.first.eps == EPS
    assert other.net.first.momentum == pytest.approx(1 - DECAY)


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
def test_torch_into_a_keras_file(keras_files, name, tmp_path):
    import keras

    one = Torch(2, eps=1e-2)
    result = translate(one.net, tmp_path / f"new-{name}", like=keras_files[0] / name)
    assert result.target == tmp_path / f"new-{name}"
    if name == "a.weights.h5":
        model = keras_net(eps=1e-2)
        model.load_weights(result.target)
    else:
        model = keras.models.load_model(result.target, compile=False)
    np.testing.assert_allclose(keras_run(model, X), one.infer(X), atol=1e-5)
    assert model.get_layer("first").epsilon == 1e-2
    assert model.get_layer("first").momentum == pytest.approx(DECAY)


def test_a_keras_file_into_a_state_dict_file_named_either_way(keras_files, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from safetensors.torch import load_file

    translate(keras_files[0] / "a.keras", tmp_path / "named.safetensors", like=Torch(2).net)
    net = Torch(2).net
    net.load_state_dict(load_file(tmp_path / "named.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(net.eval()(torch.from_numpy(X)).numpy(), keras_files[1], atol=1e-5)
    translate(keras_files[0] / "a.keras", tmp_path / "plain.safetensors")
    assert "block0_bn1.running_var" in load_file(tmp_path / "plain.safetensors")


def test_names_that_keras_made_up_need_a_map_or_trust():
    needs("keras")
    net = keras_net(named=False)
    other = Torch(2)
    with pytest.raises(BatchNormError, match="batch_norm of shape \\(8,\\) is batch_normalization"):
        other.fill(net)
    other.fill(net, trust_numbers=True)
    np.testing.assert_allclose(other.infer(X), keras_run(net, X), atol=1e-5)


def test_nested_separable_transposed_and_unscaled_layers(tmp_path):
    """Every kind of layer with weights that files list differently, nested models included."""
    needs("keras", "h5py")
    import keras

    layers = keras.layers
    entry = keras.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(entry)
    x = layers.SeparableConv2D(4, 3, name="sep")(x)
    x = layers.Conv2DTranspose(5, 3, name="up")(x)
    x = layers.BatchNormalization(scale=False, name="norm")(x)
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(3), layers.BatchNormalization(center=False)], name="tail")
    model = keras.Model(entry, inner(layers.GlobalAveragePooling2D()(x)))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.3, 1, variable.shape))

    def net():
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1),
            nn.ConvTranspose2d(4, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
            nn.BatchNorm1d(3),
        ).eval()  # fmt: skip

    x = rng.normal(size=(2, 4, 6, 6)).astype(np.float32)
    wanted = keras_run(model, x)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    for source in (model, tmp_path / "m.keras", tmp_path / "m.h5"):
        torch_net = net()
        translate(source, torch_net)
        with torch.no_grad():
            np.testing.assert_allclose(torch_net(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5, atol=1e-5)
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape))
    # The unscaled layer has no place for torch's weight; ones are no loss.
    translate(torch_net, model)
    np.testing.assert_allclose(keras_run(model, x), wanted, rtol=1e-5, atol=1e-5)


def test_a_linen_file_is_flax_s_own_in_both_directions(tmp_path):
    needs("jax", "flax", "msgpack")
    import flax.serialization

    from tests.interop.networks import Linen

    one, other = Linen(1), Torch(2)
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(one.source))
    other.fill(tmp_path / "a.msgpack", eps=EPS, momentum=0.1)
    np.testing.assert_allclose(other.infer(X), one.infer(X), atol=1e-5)
    third, back = Torch(3), Linen(4)
    translate(third.net, tmp_path / "b.msgpack", like=tmp_path / "a.msgpack")
    back.source = flax.serialization.from_bytes(back.source, (tmp_path / "b.msgpack").read_bytes())
    np.testing.assert_allclose(back.infer(X), third.infer(X), atol=1e-5)
    translate(third.net, tmp_path / "c.msgpack")
    fresh = flax.serialization.msgpack_restore((tmp_path / "c.msgpack").read_bytes())
    back.source = fresh
    np.testing.assert_allclose(back.infer(X), third.infer(X), atol=1e-5)


def test_an_npz_tree_goes_there_and_back(tmp_path):
    one, other = Torch(1), Torch(2)
    translate(one.net, tmp_path / "a.npz")
    other.fill(tmp_path / "a.npz", eps=EPS, momentum=0.1)
    torch.testing.assert_close(other.net.state_dict(), one.net.state_dict(), rtol=0, atol=0)


@pytest.fixture
def onnx_file(tmp_path):
    needs("onnx", "onnxscript", "onnxruntime")
    one = Torch(1)
    torch.onnx.export(
        one.net, (torch.from_numpy(X),), tmp_path / "a.onnx", dynamo=True, optimize=False, external_data=False,
        verbose=False,
    )  # fmt: skip
    return tmp_path / "a.onnx", one


def test_onnx_into_torch_and_back(onnx_file, tmp_path):
    import onnxruntime

    path, one = onnx_file
    other = Torch(2, eps=0.1)
    result = other.fill(path)
    np.testing.assert_allclose(other.infer(X), one.infer(X), atol=1e-5)
    assert other.net.first.eps == EPS
    assert other.net.first.momentum == pytest.approx(0.1)
    assert {row.by for row in result.layers} == {"name"}
    third = Torch(3, eps=1e-2)
    translate(third.net, tmp_path / "b.onnx", like=path)
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx")
    ran = session.run(None, {session.get_inputs()[0].name: X})[0]
    np.testing.assert_allclose(ran, third.infer(X), atol=1e-5)


def test_an_onnx_file_whose_batch_norm_was_folded_says_which_layers_are_missing(tmp_path):
    needs("onnx", "onnxscript")
    net = Torch(1).net
    torch.onnx.export(net, (torch.from_numpy(X),), tmp_path / "a.onnx", dynamo=True, external_data=False, verbose=False)
    with pytest.raises(BatchNormError, match=r"no partner for .*first \(batch_norm of shape"):
        translate(tmp_path / "a.onnx", Torch(2).net)


def test_a_keras_file_is_read_without_keras(keras_files, tmp_path):
    """In a process where importing keras, tensorflow or jax fails."""
    import subprocess
    import sys

    program = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'jax', 'flax'): sys.modules[name] = None\n"
        "from batchnorm.interop import translate\n"
        f"print(len(translate({str(keras_files[0] / 'a.keras')!r}, 'torch').layers))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "15", ran.stderr


def test_settings_are_read_from_the_file(keras_files, tmp_path):
    """Different eps and momentum in each layer arrive each in its own."""
    with zipfile.ZipFile(keras_files[0] / "a.keras") as old, zipfile.ZipFile(tmp_path / "b.keras", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry == "config.json":
                config = json.loads(data)
                norms = [x for x in config["config"]["layers"] if x["class_name"] == "BatchNormalization"]
                for i, layer in enumerate(norms):
                    layer["config"].update(epsilon=0.01 * (i + 1), momentum=1 - 0.05 * (i + 1))
                order = [x["config"]["name"] for x in norms]
                data = json.dumps(config).encode()
            new.writestr(entry, data)
    settings = translate(tmp_path / "b.keras", Torch(2).net).settings
    for i, name in enumerate(order):
        eps, momentum = settings[name.replace("_", ".", 1)] if name.startswith("block") else settings[name]
        assert eps == pytest.approx(0.01 * (i + 1))
        assert momentum == pytest.approx(0.05 * (i + 1))
