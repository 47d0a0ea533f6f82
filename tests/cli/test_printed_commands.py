"""Every command that `inspect` prints, run as printed, leads to a file without what it was printed for."""

import argparse
import itertools
import json
import shlex

import pytest
import torch
from torch import nn

from tests.command import run
from tests.sampling import slow_but

FACTORIES = """
import torch
from torch import nn
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
def data():
    return list((torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 3).split(8))
"""


def trained():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    for x in (torch.randn(320, 3, 8, 8) + 3).split(8):
        net(x)
    return net


def with_change(change):
    net = trained()
    with torch.no_grad():
        change(net)
    return net


def half(net):
    net[1].running_var[0] = 1e4
    return {name: v.half() if v.is_floating_point() else v for name, v in net.state_dict().items()}


MAKERS = {
    "BN202": lambda: with_change(lambda net: net[1].running_mean[0].fill_(float("nan"))).state_dict(),
    "BN203": lambda: with_change(lambda net: net[1].running_var[0].fill_(-1.0)).state_dict(),
    "BN201": lambda: with_change(lambda net: net[1].reset_running_stats()).state_dict(),
    "BN209": lambda: with_change(lambda net: net[1].num_batches_tracked.fill_(3)).state_dict(),
    "BN205": lambda: {**half(trained()), "1.running_var": torch.full((8,), 4e4).half()},
}
WRAPPERS = {
    "plain": lambda state: state,
    "average": lambda state: {"model": trained().state_dict(), "ema": state, "epoch": 3},
    "DDP": lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}},
    "my file.pt": lambda state: {"net": {f"net.{name}": v for name, v in state.items()}},
}


# Each kind of file by default, each with another fault.
ALWAYS = set(zip(WRAPPERS, MAKERS, strict=False))


@pytest.mark.parametrize("case", slow_but(list(itertools.product(WRAPPERS, MAKERS)), ALWAYS), ids="-".join)
def test_recalibrate_as_printed_repairs_what_was_found(tmp_path, case):
    wrapper, code = case
    (tmp_path / "mine.py").write_text(FACTORIES)
    name = wrapper if wrapper.endswith(".pt") else "w.pt"
    torch.save(WRAPPERS[wrapper](MAKERS[code]()), tmp_path / name)
    found = json.loads(run(tmp_path, "inspect", name, "--json").stdout)["findings"]
    fixes = {f["fix"] for f in found if f["code"] == code}
    assert len(fixes) == 1, found
    command = shlex.split(fixes.pop().replace("--model M:F", "--model mine:model").replace("M:F", "mine:data"))
    ran = run(tmp_path, *command[1:])
    assert ran.returncode == 0, ran.stderr
    left = json.loads(run(tmp_path, "inspect", "fixed.pt", "--json").stdout)["findings"]
    assert code not in {f["code"] for f in left}
    if wrapper == "average":
        before, after = (torch.load(tmp_path / n, weights_only=True) for n in (name, "fixed.pt"))
        assert all(torch.equal(before["model"][k], v) for k, v in after["model"].items())


def test_a_pickled_model_is_repaired_into_a_state_dict(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORIES)
    torch.save(with_change(lambda net: net[1].reset_running_stats()), tmp_path / "best.pt")
    arguments = ("--model", "mine:model", "--data", "mine:data", "--weights", "best.pt", "--out", "fixed.pt")
    ran = run(tmp_path, "recalibrate", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert "is not in it: the object itself" in " ".join(ran.stdout.split())
    state = torch.load(tmp_path / "fixed.pt", weights_only=True)
    assert torch.equal(state["0.weight"], trained()[0].weight)
    assert run(tmp_path, "inspect", "fixed.pt").returncode == 0


def test_objects_are_named_and_not_overwritten_and_all_else_is_kept(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORIES)
    content = {"model": with_change(lambda net: net[1].reset_running_stats()).state_dict(), "epoch": 7,
               "args": argparse.Namespace(lr=0.1)}  # fmt: skip
    torch.save(content, tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    arguments = ("recalibrate", "--model", "mine:model", "--data", "mine:data", "--weights", "run.pt", "--out")
    ran = run(tmp_path, *arguments, "run.pt")
    assert ran.returncode == 2
    assert "--out must be another file than --weights" in ran.stderr
    assert (tmp_path / "run.pt").read_bytes() == before
    ran = run(tmp_path, *arguments, "fixed.pt", "--json")
    assert json.loads(ran.stdout)["left_out"] == ["args"]
    fixed = torch.load(tmp_path / "fixed.pt", weights_only=True)
    assert fixed.keys() == {"model", "epoch"}
    assert fixed["epoch"] == 7


def test_a_script_that_ends_the_process_when_it_is_imported_is_an_error(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORIES + "\nimport sys\nsys.exit(0)\n")
    ran = run(tmp_path, "recalibrate", "--model", "mine:model", "--data", "mine:data", "--out", "fixed.pt")
    assert ran.returncode == 2
    assert "SystemExit in mine.py" in ran.stderr
    assert not (tmp_path / "fixed.pt").exists()
