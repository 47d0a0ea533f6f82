"""`batchnorm recalibrate` writes a new checkpoint with everything else in it as it was."""

import json

import pytest
import torch
from test_cli import folder as folder
from torch import nn

from tests.command import run


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",)])
def test_recalibrate_keeps_everything_else_in_a_checkpoint(folder, nested):
    torch.manual_seed(5)
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    state = {name: v.half() if "conv" in name or name.startswith("0") else v for name, v in state.items()}
    content = state
    for key in nested:
        content = {key: content, "epoch": 7, "optimizer": {"lr": 0.1, "momentum": [torch.ones(2)]}}
    torch.save(content, folder / "w.pt")
    arguments = ["--model", "mine:model", "--data", "mine:data", "--weights", "w.pt", "--out", "out.pt", "--json"]
    result = run(folder, "recalibrate", *arguments, "--upstream", "batch", "--max-samples", "64")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["samples"], report["needed"], report["layers"]["1"]["residual"]) == (64, True, None)
    new = torch.load(folder / "out.pt", weights_only=True)
    inner = new
    for key in nested:
        assert new["epoch"] == 7
        assert torch.equal(new["optimizer"]["momentum"][0], torch.ones(2))
        inner = new[key]
    assert {n: v.dtype for n, v in inner.items()} == {n: v.dtype for n, v in state.items()}
    assert {n for n in state if not torch.equal(inner[n], state[n])} == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip


def test_recalibrate_keeps_the_metadata_of_safetensors(folder):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    save_file({name: v.half() if name.startswith("0") else v for name, v in state.items()}, folder / "w.safetensors",
              {"format": "pt", "by": "me"})  # fmt: skip
    arguments = ["--model", "mine:model", "--data", "mine:data", "--weights", "w.safetensors"]
    result = run(folder, "recalibrate", *arguments, "--out", "w.safetensors", "--until", "0.5", "--resume", "r.ckpt")
    assert result.returncode == 0, result.stderr
    with safetensors.safe_open(folder / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}
        assert file.get_tensor("0.weight").dtype == torch.float16
        assert int(file.get_tensor("1.num_batches_tracked")) == 2
    assert not (folder / "r.ckpt").exists()
