"""`batchnorm translate` as a person runs it, and files that are not what their names say."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from batchnorm import BatchNormError
from batchnorm.cli import main
from batchnorm.interop import translate
from tests import command
from tests.fuzzing import fuzz

MODEL = """
from torch import nn
def model():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(), tmp_path / "a.pt")
    (tmp_path / "map.json").write_text('{"0": "0", "1": "1"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.keras").write_text("no zip")
    return tmp_path


def run(folder, *arguments):
    return command.run(folder, "translate", *arguments)


def test_there_and_back(folder):
    there = run(folder, "a.pt", "b.npz", "--eps", "1e-5", "--momentum", "0.1", "--json")
    assert there.returncode == 0, there.stderr
    said = json.loads(there.stdout)
    assert said["batch_norm"] == {"1": {"eps": 1e-5, "momentum": 0.1}}
    assert [row["kind"] for row in said["layers"]] == ["linear", "batch_norm"]
    back = run(folder, "b.npz", "c.pt", "--model", "mine:model", "--map", "map.json", "--steps", "12", "--count", "10")
    assert back.returncode == 0, back.stderr
    assert "wrote c.pt" in back.stdout
    one, other = (torch.load(folder / name, weights_only=True) for name in ("a.pt", "c.pt"))
    assert torch.equal(one["0.weight"], other["0.weight"])
    assert int(other["1.num_batches_tracked"]) == 12
    torch.testing.assert_close(other["1.running_var"], torch.full((3,), 10 / 9))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.pt", "b.npz"], "source must be an existing file; there is none at none.pt"),
        (["mine.py", "b.npz"], "source must end in one of .pt"),
        (["a.pt", "b.zip"], "target must be 'torch', 'flax', a model, or a file that ends in"),
        (["a.pt", "nowhere/b.npz"], "target must lie in an existing folder"),
        (["a.pt", "b.keras"], "writing .keras needs like="),
        (["a.pt", "b.npz", "--like", "a.pt"], "like must be of the target's format, .npz"),
        (["a.pt", "b.npz", "--map", "none.json"], "--map must be a JSON file"),
        (["a.pt", "b.npz", "--map", "bad.json"], "--map must be a JSON file"),
        (["a.pt", "b.npz", "--map", "list.json"], "--map must hold an object"),
        (["a.pt", "b.npz", "--flatten", "0"], "--flatten must be NAME=C,H,W"),
        (["a.pt", "b.npz", "--flatten", "0=3,4"], "that multiply to 2; it was (3, 4)"),
        (["a.pt", "b.npz", "--flatten", "x=1,2"], "flatten must name linear layers of the target; 'x' is none of 0"),
        (["a.pt", "b.npz", "--eps", "2"], "eps must be in [0, 1]"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_two_and_no_file(folder, arguments, sentence, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["batchnorm", "translate", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not any((folder / name).exists() for name in ("b.npz", "b.zip", "b.keras"))


ENDINGS = [".pt", ".safetensors", ".keras", ".h5", ".weights.h5", ".msgpack", ".npz", ".onnx"]
NEEDS = {".keras": "h5py", ".h5": "h5py", ".weights.h5": "h5py", ".msgpack": "msgpack", ".onnx": "onnx"}


@pytest.mark.parametrize("ending", ENDINGS)
@fuzz(200)
@example(data=b"\x80")  # an empty map of msgpack: read, and nothing in it
@given(data=st.binary(max_size=300))
def test_noise_is_refused_in_a_sentence(tmp_path_factory, ending, data):
    if ending in NEEDS:
        pytest.importorskip(NEEDS[ending], reason=f"{NEEDS[ending]} is not installed")
    path = tmp_path_factory.mktemp("noise") / f"a{ending}"
    path.write_bytes(data)
    with pytest.raises(BatchNormError, match=r"(source|weights) must"):
        translate(path, "torch")


@pytest.mark.parametrize("ending", [".pt", ".npz", ".msgpack", ".safetensors"])
def test_a_file_cut_anywhere_or_changed_anywhere_never_fails_otherwise(tmp_path, ending):
    """Truncations and flipped bytes: read to something, or a BatchNormError; nothing else."""
    if ending in NEEDS:
        pytest.importorskip(NEEDS[ending], reason=f"{NEEDS[ending]} is not installed")
    path = tmp_path / f"a{ending}"
    translate(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for i in range(150):
        data = bytearray(whole)
        place = int(rng.integers(len(data)))
        if i % 2:
            data[place] ^= int(rng.integers(1, 256))
        else:
            del data[place:]
        path.write_bytes(bytes(data))
        try:
            translate(path, "torch")
        except BatchNormError:
            continue


@pytest.mark.filterwarnings("default")
def test_a_keras_file_cut_or_changed_never_fails_otherwise(tmp_path):
    pytest.importorskip("keras", reason="keras is not installed: make test-interop installs and runs this")
    from tests.interop.networks import Keras

    for ending in (".keras", ".h5", ".weights.h5"):
        path = tmp_path / f"a{ending}"
        net = Keras(1, size=8).net
        net.save_weights(path) if ending == ".weights.h5" else net.save(path)
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        for i in range(60):
            data = bytearray(whole)
            for place in rng.integers(len(data), size=20):
                data[place] ^= int(rng.integers(1, 256))
            path.write_bytes(bytes(data[: int(rng.integers(len(data)))] if i % 3 == 0 else data))
            try:
                translate(path, "torch", eps=1e-3)
            except BatchNormError:
                continue


def test_a_link_to_another_file_is_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((3, 2))
    for kind in ("group", "dataset"):
        with h5py.File(tmp_path / "a.weights.h5", "w") as file:
            vars_ = file.create_group("layers/dense/vars")
            if kind == "group":
                file["layers/dense_1"] = h5py.ExternalLink("secret.h5", "/")
            else:
                vars_["0"] = h5py.ExternalLink("secret.h5", "/x")
        with pytest.raises(BatchNormError, match="is a link to another file"):
            translate(tmp_path / "a.weights.h5", "torch")


def test_what_pickles_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"x": Evil()}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], dtype=object))
    for name in ("a.pt", "a.npz"):
        with pytest.raises(BatchNormError):
            translate(tmp_path / name, "torch")
    assert not (tmp_path / "ran").exists()


def test_no_framework_is_imported_before_it_is_used():
    names = ("h5py", "msgpack", "onnx", "jax", "flax", "keras", "equinox", "haiku", "timm", "torchvision")
    program = f"import sys, batchnorm.interop; print([n for n in {names} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
