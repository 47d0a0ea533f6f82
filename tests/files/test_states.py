"""Which state dict of a checkpoint is meant, what its names are to a model, and what is written back."""

import argparse

import pytest
import torch
from torch import nn

from batchnorm.errors import BatchNormError
from batchnorm.files import load_archive, save_archive


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)


def state(prefix="", seed=0):
    torch.manual_seed(seed)
    net = Net()
    net.bn.running_mean.normal_()
    return {prefix + name: value for name, value in net.state_dict().items()}


def lightning():
    return {"epoch": 3, "state_dict": {**state("net."), "loss.weight": torch.ones(2)}, "hyper_parameters": {"lr": 0.1}}


SHAPES = {
    "plain": (lambda: state(), None),
    "state_dict": (lambda: {"state_dict": state(), "epoch": 1}, None),
    "a name nobody uses": (lambda: {"my_best": state(), "scores": torch.ones(3)}, None),
    "with an optimizer": (lambda: {"model": state(), "optimizer": {"state": {"exp_avg": torch.ones(2)}}}, None),
    "two deep": (lambda: {"trainer": {"model": state()}}, None),
    "DDP": (lambda: state("module."), None),
    "compiled": (lambda: {"model": state("_orig_mod.")}, None),
    "compiled in DDP": (lambda: state("module._orig_mod."), None),
    "Lightning": (lightning, None),
    "Lightning, compiled": (lambda: {"state_dict": state("model._orig_mod.")}, None),
    "beside an average": (lambda: {"model": state(), "ema": state(seed=1)}, "model"),
    "a module and its average": (lambda: {"state_dict": {**state("m."), **state("ema.", 1)}}, "state_dict.m"),
    "in a list": (lambda: {"clients": {"0": state(), "1": state(seed=1)}}, "clients.0"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_state_is_found_renamed_for_the_model_and_written_back_where_it_was(tmp_path, shape):
    make, key = SHAPES[shape]
    content, net = make(), Net()
    torch.save(content, tmp_path / "a.pt")
    archive = load_archive(tmp_path / "a.pt", key).fitted(net.state_dict(), "a.pt")
    net.load_state_dict(archive.state)
    assert torch.equal(net.bn.running_mean, state()["bn.running_mean"])
    save_archive(archive.replaced({"bn.running_mean": torch.full((4,), 7.0)}), tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    moved = differing(content, again)
    assert len(moved) == 1
    assert moved[0].endswith("bn.running_mean")
    assert "ema" not in moved[0]
    assert ".1." not in moved[0]


def differing(a, b, at=""):
    """The paths at which two nested dicts differ."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        return [path for key in a for path in differing(a[key], b[key], f"{at}.{key}")]
    return [] if (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) else [at]


@pytest.mark.parametrize(
    ("content", "key", "sentence"),
    [
        ({"model": state(), "ema": state()}, None, "a.pt holds 2: model, ema. Add --key model"),
        ({"model": state(), "ema": state()}, "emma", "a.pt has model, ema; it was 'emma'"),
        ({"state_dict": {**state("student."), **state("teacher.")}}, None, "a.pt has them under student, teacher"),
        ({"epoch": 3}, None, "a.pt holds a dict"),
        ([1, 2], None, "a.pt holds a list"),
    ],
)
def test_what_is_not_certain_is_refused_in_a_sentence(tmp_path, content, key, sentence):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(BatchNormError) as raised:
        load_archive(tmp_path / "a.pt", key).fitted(Net().state_dict(), "a.pt")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_of_a_pickled_model_are_read_and_its_objects_are_not(tmp_path, zipped):
    net = Net()
    net.conv.weight = nn.Parameter(net.conv.weight.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    content = {"net": net, "args": argparse.Namespace(lr=0.1), "last": net.bn.weight.detach()[::2],
               "optimizer": optimizer.state_dict(), "epoch": 7, "log": [(1, 0.5), (2, 0.4, None)]}  # fmt: skip
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    archive = load_archive(tmp_path / "a.pt")
    assert archive.lost == ("net", "args")
    assert archive.content["epoch"] == 7
    assert archive.content["log"] == content["log"]
    again = torch.optim.Adam(net.parameters())
    again.load_state_dict(archive.content["optimizer"])
    assert str(again.state_dict()) == str(optimizer.state_dict())
    assert archive.keys == ("net",)
    for name, value in net.state_dict().items():
        assert torch.equal(archive.state[name], value), name
        assert archive.state[name].dtype is value.dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_are_written_in_float32_at_least_and_other_tensors_as_they_were(tmp_path, dtype):
    half = {name: v.to(dtype) if v.is_floating_point() else v for name, v in state().items()}
    torch.save(half, tmp_path / "a.pt")
    new = load_archive(tmp_path / "a.pt").replaced(
        {"bn.running_var": torch.full((4,), 1e6), "bn.weight": torch.ones(4)}
    )
    assert new.state["bn.running_var"].tolist() == [1e6] * 4
    assert new.state["bn.running_var"].dtype is torch.float32
    assert new.state["bn.weight"].dtype is dtype


def test_a_tensor_that_claims_to_repeat_a_value_for_ever_is_refused(tmp_path):
    torch.save({"bn.running_mean": torch.zeros(1).expand(10**9), "object": Net()}, tmp_path / "a.pt")
    with pytest.raises(BatchNormError, match="repeats few values too often"):
        load_archive(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("hold", "key"),
    [
        (lambda state: [state], "0"),
        (lambda state: (3, state), "1"),
        (lambda state: {0: state}, "0"),
        (lambda state: {"runs": [{"best": state, "epoch": 3}]}, "runs.0.best"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_state_in_a_list_or_under_a_number_is_found_and_written_back_in_its_place(tmp_path, hold, key, named):
    content = hold(state())
    torch.save(content, tmp_path / "a.pt")
    archive = load_archive(tmp_path / "a.pt", key if named else None)
    new = archive.replaced({"bn.running_mean": torch.full((4,), 7.0)})
    assert type(new.content) is type(content)
    save_archive(new, tmp_path / "b.pt")
    again = load_archive(tmp_path / "b.pt")
    assert again.keys == archive.keys
    assert again.state["bn.running_mean"].tolist() == [7.0] * 4
    assert archive.state["bn.running_mean"].tolist() != [7.0] * 4


def test_an_optimizers_state_is_no_candidate(tmp_path):
    torch.save({"net2": {"w": torch.ones(3)}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "a.pt")
    assert load_archive(tmp_path / "a.pt").keys == ("net2",)
